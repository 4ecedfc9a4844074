#!/usr/bin/env bash
# All that a bare Debian 12 can prove, in one command: installs what is missing, builds, runs all tests.
#
#   tests/run.sh [PRESET...]           presets: dev asan tsan clang (default: dev)
#   SHOAL_RUN_FILTER=REGEX             only tests whose name matches
# Ends with the counts, each skipped test with its reason, and exits non-zero if anything failed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/packages.sh
source deploy/packages.sh

presets=("$@")
[ ${#presets[@]} -eq 0 ] && presets=(dev)

shoal_install "${SHOAL_BUILD_PACKAGES[@]}" "${SHOAL_TEST_PACKAGES[@]}"
for preset in "${presets[@]}"; do
  [ "$preset" != clang ] || shoal_install clang-14
done

# Python clients and references live in a virtual environment of their own. SHOAL_VENV names another one.
export SHOAL_VENV=${SHOAL_VENV:-$PWD/.venv}
tests/python_env.sh "$SHOAL_VENV"

echo "== format"
git ls-files '*.h' '*.cc' | xargs clang-format-14 --dry-run -Werror

logs=()
failed=0
for preset in "${presets[@]}"; do
  echo "== $preset: configure and build"
  cmake --preset "$preset" >/dev/null
  cmake --build --preset "$preset"
  echo "== $preset: test"
  log=build/$preset/tests.log
  ctest --preset "$preset" --verbose ${SHOAL_RUN_FILTER:+-R "$SHOAL_RUN_FILTER"} >"$log" 2>&1 || failed=1
  logs+=("$log")
done

python3 tests/summary.py "${logs[@]}" || failed=1
exit "$failed"
