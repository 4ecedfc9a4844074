#!/usr/bin/env bash
# From a bare Debian 12 (root or sudo) to an answer on the screen: installs what is missing, builds, starts a
# coordinator with 4 worker processes that serve Minnow, and streams its answer with its reasoning.
#
#   deploy/quickstart.sh [--keep]      --keep: leave the cluster running on ports 8470 and 8480 (HTTP) until Ctrl-C
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
cmake --preset release -B "$build" -D BUILD_TESTING=OFF >/dev/null
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

# Minnow is a small model of our own that really answers; without it a synthetic checkpoint shows the machinery.
model=deploy/minnow
question="What is 12 plus 30?"
if [ ! -f "$model/config.json" ]; then
  echo "== a synthetic checkpoint in the release's format (its words mean nothing)"
  model=$work/words
  "$shoal" synth "$model" --geometry tiny --vocab 1024
fi

echo "== a coordinator and 4 workers"
# Port 0: any free one; the address is written where --address-file says once the service is ready.
port=0
[ "$keep" -eq 1 ] && port=8470
http_port=0
[ "$keep" -eq 1 ] && http_port=8480
"$shoal" serve --model "$model" --workers 4 --listen "127.0.0.1:$port" \
  --http "127.0.0.1:$http_port" --http-address-file "$work/http_address" --address-file "$work/address" 2>"$work/serve.log" &
server=$!
for _ in $(seq 600); do
  [ -s "$work/address" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/serve.log" >&2; exit 1; }
  sleep 0.1
done
[ -s "$work/address" ] || { echo "error: not ready after 60 s" >&2; cat "$work/serve.log" >&2; exit 1; }
address=$(cat "$work/address")
"$shoal" status --server "$address"

echo "== a question: $question"
"$shoal" chat --server "$address" --prompt "$question" --max-tokens 200 --seed 7
if [ "$keep" -eq 1 ]; then
  echo "== serving on $address, and OpenAI's API on http://$(cat "$work/http_address")/v1; Ctrl-C ends it"
  wait "$server"
fi
echo "== done"
