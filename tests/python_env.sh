#!/usr/bin/env bash
# tests/python_env.sh DIR: a virtual environment with the independent implementations that tests compare
# with: numpy, jsonschema, grpcio and openai (real clients), torch and transformers (the public model code). Without a
# package registry it keeps what it could get; tests that need the rest skip, loudly.
set -euo pipefail
venv=$1
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
need() { "$venv/bin/python" -c "import $1" 2>/dev/null; }
install() {
  echo "installing for tests: $*" >&2
  "$venv/bin/pip" install -q --disable-pip-version-check "$@" ||
    echo "warning: could not install $*: tests that need it will skip" >&2
}
need numpy || install numpy
need jsonschema || install jsonschema
need grpc_tools || install grpcio grpcio-tools
{ need torch && need transformers && need accelerate; } || install torch transformers safetensors accelerate
need openai || install openai
