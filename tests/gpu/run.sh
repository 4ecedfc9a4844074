#!/usr/bin/env bash
# Everything that a GPU must show, in under 9 minutes, from a copied tree: builds what is not there,
# then parity, invariance, compute-sanitizer and the benches.
#
#   tests/gpu/run.sh [OUT]     OUT: a folder for logs, bench.json and summary.txt (default: build/gpu/out)
#
# Needs nvcc, CMake and Ninja, or a build carried along in build/gpu. Ends with one line per part.
# Exit code 0: all green, 1: something failed, 77: no device.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=${SHOAL_GPU_BUILD:-build/gpu}
out=${1:-$build/out}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
started=$SECONDS
limit=${SHOAL_GPU_SECONDS:-520}
failed=0

note() { printf '%-44s %s\n' "$1" "$2" | tee -a "$summary"; }

# part NAME SECONDS CMD...: runs it with a limit, keeps its log, notes how it ended.
part() {
  local name=$1 seconds=$2 left=$((limit - (SECONDS - started))) began=$SECONDS code=0
  shift 2
  if [ "$left" -lt 10 ]; then
    note "$name" "LEFT OUT: the time is up"
    failed=1
    return 1
  fi
  [ "$seconds" -le "$left" ] || seconds=$left
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || code=$?
  case $code in
    0) note "$name" "ok, $((SECONDS - began)) s" ;;
    77) note "$name" "SKIPPED: no CUDA device" ;;
    124) note "$name" "FAILED: not done after $seconds s" && failed=1 ;;
    *) note "$name" "FAILED with code $code, $((SECONDS - began)) s; see $name.log" && failed=1 ;;
  esac
  return "$code"
}

programs=$build/tests/gpu
if [ ! -x "$programs/gpu_parity" ] || [ ! -x "$programs/gpu_forward" ] || [ ! -x "$programs/gpu_bench" ] || [ ! -x "$programs/gpu_invariance" ]; then
  if ! command -v nvcc >/dev/null || ! command -v cmake >/dev/null; then
    echo "no build in $build, and no nvcc or cmake to make one" >&2
    exit 1
  fi
  # For this machine's GPU; the preset's own choice is 9.0, whose wgmma wants the "a".
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
  [ "${architecture:-90}" = 90 ] && architecture=90a
  part configure 60 cmake --preset gpu -B "$build" -DCMAKE_CUDA_ARCHITECTURES="$architecture-real" || exit 1
  part build 300 cmake --build "$build" -j "$(nproc)" || { tail -30 "$out/build.log"; exit 1; }
fi

part parity 150 "$programs/gpu_parity"
if [ $? -eq 77 ]; then
  tail -1 "$out/parity.log"
  exit 77
fi
tail -14 "$out/parity.log"
part forward 60 "$programs/gpu_forward"
tail -1 "$out/forward.log"
part invariance 90 "$programs/gpu_invariance"
tail -3 "$out/invariance.log"

matmul=0
if python3 -c 'import torch' 2>/dev/null; then
  part matmul 60 python3 tests/gpu/matmul.py && matmul=$(tail -1 "$out/matmul.log")
fi
part bench 200 "$programs/gpu_bench" --json "$out/bench.json" --matmul "$matmul"
cat "$out/bench.log"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "$tool" 120 compute-sanitizer --tool "$tool" --error-exitcode 9 "$programs/gpu_parity" --quick
    tail -2 "$out/$tool.log"
  done
else
  note sanitizer "LEFT OUT: compute-sanitizer is not here"
fi

echo "---- $((SECONDS - started)) s"
cat "$summary"
exit "$failed"
