#!/usr/bin/env bash
# From a bare Debian 12 (root or sudo) to streamed tokens: installs what is missing, builds, writes a small
# synthetic checkpoint, starts a coordinator with 4 worker processes and streams an answer from them.
#
#   deploy/quickstart.sh [--keep]      --keep: leave the cluster running on port 8470 until Ctrl-C
#   SHOAL_BUILD=DIR                    build there instead of build/release
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/packages.sh
source deploy/packages.sh

keep=0
case "${1:-}" in
  "") ;;
  --keep) keep=1 ;;
  *) echo "usage: deploy/quickstart.sh [--keep]" >&2; exit 2 ;;
esac

shoal_install "${SHOAL_BUILD_PACKAGES[@]}"

build=${SHOAL_BUILD:-build/release}
echo "== build ($build)"
cmake --preset release -B "$build" >/dev/null
cmake --build "$build" --target shoal
shoal=$build/cli/shoal

work=$(mktemp -d)
server=
cleanup() {
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

echo "== a synthetic checkpoint in the release's format"
"$shoal" synth "$work/model" --geometry tiny --vocab 512

echo "== a coordinator and 4 workers"
# Port 0: any free one; the address is written where --address-file says once the service is ready.
port=0
[ "$keep" -eq 1 ] && port=8470
"$shoal" serve --model "$work/model" --workers 4 --listen "127.0.0.1:$port" \
  --address-file "$work/address" 2>"$work/serve.log" &
server=$!
for _ in $(seq 600); do
  [ -s "$work/address" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/serve.log" >&2; exit 1; }
  sleep 0.1
done
[ -s "$work/address" ] || { echo "error: not ready after 60 s" >&2; cat "$work/serve.log" >&2; exit 1; }
address=$(cat "$work/address")
"$shoal" status --server "$address"

echo "== an answer (the weights are a formula: the words mean nothing, the machinery is real)"
"$shoal" generate --server "$address" --prompt "Hello, shoal!" --max-tokens 48 --temperature 0.8 --seed 7
echo
if [ "$keep" -eq 1 ]; then
  echo "== serving on $address; Ctrl-C ends it"
  wait "$server"
fi
echo "== done"
