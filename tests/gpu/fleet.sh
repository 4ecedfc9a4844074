#!/usr/bin/env bash
# A NCCL fleet on one GPU loses a member, again and again: 2 and 3 ranks over NCCL's sockets, each
# pretending to be on a host of its own; one is killed in mid-stream; the tokens must be those of a
# single rank, and nothing may be left behind. Prints the time of each phase and, before and after,
# device memory, threads and open files of a survivor.
#
#   tests/gpu/fleet.sh [ROUNDS]        default 20 rounds for each number of ranks
#
#   SHOAL          the program; default build/cuda/cli/shoal
#   RANKS          default "2 3"
#   FLEET_ON_CPU   the path of libfake_nccl.so: the same script on CPU workers, to test the script
#
# Exit code 0: all equal; 1: something differs or hangs; 77: there is no GPU here, nothing was run.
set -euo pipefail

rounds=${1:-20}
root=$(cd "$(dirname "$0")/../.." && pwd)
shoal=${SHOAL:-$root/build/cuda/cli/shoal}
ranks_list=${RANKS:-2 3}
max_tokens=1500
tokens=$(seq -s, 1 40)
worker_flags=(--backend cuda)

if [ -n "${FLEET_ON_CPU:-}" ]; then
  export SHOAL_NCCL_LIBRARY=$FLEET_ON_CPU
  worker_flags=()
elif ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "no NVIDIA GPU on this machine: the NCCL fleet was not run"
  exit 77
fi
[ -x "$shoal" ] || { echo "$shoal is not there: build it, or name it with SHOAL" >&2; exit 1; }

# One GPU under several ranks (docs/exchange.md): hosts of their own, sockets on lo, few blocks of
# threads, so that all ranks' kernels find room.
export NCCL_NET=Socket NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_MNNVL_ENABLE=0
export NCCL_NVLS_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_SOCKET_NTHREADS=1 NCCL_NSOCKS_PERTHREAD=1
export NCCL_RAS_ENABLE=0 NCCL_DEBUG=WARN CUDA_MODULE_LOADING=EAGER

work=$(mktemp -d)
declare -A pids=()
stop_all() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  pids=()
}
trap 'stop_all; rm -rf "$work"' EXIT

server=unix:$work/clients
model=$work/model
"$shoal" synth "$model" --geometry tiny --vocab 512 >/dev/null

start_worker() {  # ID
  NCCL_HOSTID=fakehost-$1 "$shoal" worker --coordinator "unix:$work/workers" --id "$1" \
    --model "$model" --exchange nccl: --threads 1 --memory 1GB --kv-tokens 8192 \
    --host "fakehost-$1" ${worker_flags[@]+"${worker_flags[@]}"} >>"$work/worker-$1.log" 2>&1 &
  pids[$1]=$!
}

await_ranks() {  # N: healthy, with so many ranks in one cell
  local i here
  for ((i = 0; i < 1200; ++i)); do
    # Its exit code says that the fleet is degraded, which is no news here.
    here=$({ "$shoal" status --server "$server" 2>/dev/null || true; } |
      grep -c '  worker .* rank [0-9]' || true)
    if [ "$here" = "$1" ]; then return 0; fi
    sleep 0.1
  done
  echo "the fleet has not $1 ranks after two minutes" >&2
  tail -n 5 "$work"/*.log >&2
  return 1
}

# REQUEST-ID [FLAGS]: the same id again is the same answer again. A client waits for a coordinator
# that comes back; here none does.
generate() {
  timeout 120 "$shoal" generate --server "$server" --tokens "$tokens" --max-tokens $max_tokens --seed 7 \
    --ignore-eos --request-id "$@"
}

# From one answer: its token ids; how many epoch changes it has lived through.
token_ids() { generate "$1" --json | sed 's/.*"token_ids":\[\([0-9,]*\)\].*/\1/'; }
epochs() { generate "$1" --json | sed 's/.*"epochs":\([0-9]*\).*/\1/'; }

start_fleet() {  # N
  rm -f "$work"/*.log "$work"/clients "$work"/workers
  "$shoal" coordinator --listen "$server" --worker-listen "unix:$work/workers" --model "$model" \
    --workers "$1" --copies 2 >"$work/coordinator.log" 2>&1 &
  pids[coordinator]=$!
  local id
  for ((id = 0; id < $1; ++id)); do start_worker "$id"; done
  await_ranks "$1"
}

device_memory() {
  if [ -n "${FLEET_ON_CPU:-}" ]; then echo "no device"; return; fi
  nvidia-smi --query-gpu=memory.used --format=csv,noheader
}

# Device memory; threads and open files of worker 0, which survives every round.
resources() {
  echo "$(device_memory), $(find "/proc/${pids[0]}/task" -mindepth 1 -maxdepth 1 | wc -l) threads," \
    "$(find "/proc/${pids[0]}/fd" -mindepth 1 -maxdepth 1 | wc -l) open files"
}

# Reads a stream of text; for each byte that comes $1 grows by one. The longest gap, in
# microseconds, goes to $2.
watch_stream() {
  local last='' now gap longest=0
  while IFS= LC_ALL=C read -r -N 1 _; do
    now=${EPOCHREALTIME/./}
    gap=$((now - ${last:-$now}))
    if ((gap > longest)); then longest=$gap; fi
    last=$now
    printf . >>"$1"
  done
  echo "$longest" >"$2"
}

summary() {  # NAME FILE-OF-MICROSECONDS
  sort -n "$2" | awk -v name="$1" '{ v[NR] = $1 } END {
    if (NR == 0) { printf "  %-42s none\n", name; exit }
    printf "  %-42s median %8.1f ms, maximum %8.1f ms (%d)\n", name, v[int((NR + 1) / 2)] / 1e3,
      v[NR] / 1e3, NR }'
}

phase() {  # FIELD: of all epochs that worker 0 has built, in microseconds
  { grep -h 'exchange.built' "$work/worker-0.log" || true; } |
    sed -n "s/.*\"\\{0,1\\}$1\"\\{0,1\\}[=:] *\"\\{0,1\\}\\([0-9][0-9]*\\).*/\\1/p"
}

start_fleet 1
reference=$(token_ids reference)
length=$(generate reference | wc -c)
stop_all
num_tokens=$(tr , '\n' <<<"$reference" | wc -l)
echo "reference, 1 rank: $num_tokens tokens, $length bytes of text"
if [ "$num_tokens" -ne $max_tokens ] || [ "$length" -lt 50 ]; then
  echo "FAILED: $max_tokens tokens and their text were wanted" >&2
  exit 1
fi

for ranks in $ranks_list; do
  start_fleet "$ranks"
  echo "$ranks ranks"
  if [ "$(token_ids undisturbed)" != "$reference" ]; then
    echo "FAILED: $ranks ranks give other tokens than one" >&2
    exit 1
  fi
  before=$(resources)
  : >"$work/gaps"
  for ((round = 1; round <= rounds; ++round)); do
    victim=$((ranks - 1))
    : >"$work/count"
    generate "round-$round" | watch_stream "$work/count" "$work/gap" &
    stream=$!
    moment=$((length / 50 + round * 7 % (length / 4)))
    while [ "$(stat -c %s "$work/count")" -lt "$moment" ] && kill -0 $stream 2>/dev/null; do
      sleep 0.002
    done
    kill -KILL "${pids[$victim]}"
    { wait "${pids[$victim]}" || true; } 2>/dev/null
    wait $stream
    if [ "$(token_ids "round-$round")" != "$reference" ]; then
      echo "FAILED: other tokens after the kill in round $round" >&2
      exit 1
    fi
    if [ "$(epochs "round-$round")" -lt 1 ]; then
      echo "FAILED: round $round was over before the kill" >&2
      exit 1
    fi
    cat "$work/gap" >>"$work/gaps"
    start_worker "$victim"
    await_ranks "$ranks"
  done
  echo "  $rounds kills, all tokens equal"
  summary "longest gap of a stream with a kill" "$work/gaps"
  for field in leave find connect talk; do phase ${field}_us >"$work/$field"; done
  summary "ncclCommAbort" "$work/leave"
  summary "unique id, by way of the coordinator" "$work/find"
  summary "ncclCommInitRankConfig until all have met" "$work/connect"
  summary "first message between each two" "$work/talk"
  echo "  before: $before"
  echo "  after:  $(resources)"
  stop_all
done
