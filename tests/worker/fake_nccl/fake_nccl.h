// A NCCL for hosts without a GPU: the functions of nccl_api.h over host memory, between threads or
// processes of one host, with the habits of the real one that matter: a non-blocking init in a
// thread of its own that waits for absent peers for ever, launches that are not on the stream yet
// when ncclGroupEnd returns, operations that wait for dead peers until they are aborted, errors
// that show themselves only in ncclCommGetAsyncError. And scripted: a hook sees every call first.
//
// Linked into tests, and built as libfake_nccl.so for whole fleets, where the environment variable
// FAKE_NCCL scripts it: comma-separated
//   version=N         what ncclGetVersion says
//   init=hang         ncclCommInitRankConfig never settles: this rank meets nobody
//   init_call=hang    ncclCommInitRankConfig does not return
//   abort=hang        ncclCommAbort does not return
//   id=fail           ncclGetUniqueId fails
//   drop=N            messages from the N-th group on vanish, as in a firewall
//   die_in_group=N    SIGKILL between ncclGroupStart and ncclGroupEnd of the N-th group
#pragma once

#include <cstdint>
#include <functional>

#include "worker/exchange/nccl_api.h"

namespace shoal {

enum class FakeCall {
  kGetUniqueId,
  kInit,
  kGetAsyncError,
  kAbort,
  kGroupStart,
  kGroupEnd,
  kSend,
  kRecv,
};

// The function table, on this process's copy.
NcclApi FakeNcclApi();

// Called at the start of every call, on the caller's thread, under no lock; may block. Another
// answer than kSuccess is the call's, and nothing else happens, save that ncclCommAbort aborts
// anyway, and that kInProgress means: of init, it meets nobody; of a group's end, what the group
// sends vanishes. `rank` is -1 where there is no communicator yet. An empty hook: none.
// Thread-safe.
using FakeHook = std::function<NcclResult(FakeCall call, int rank, NcclCommHandle comm)>;
void SetFakeHook(FakeHook hook);

// The connections of `comm` break, as if its process had died. REQUIRES: from the hook.
void DropFakeConnections(NcclCommHandle comm);

struct FakeCounts {
  int64_t comms = 0;    // Alive
  int64_t threads = 0;  // Likewise
  int64_t sockets = 0;  // Likewise
  int64_t aborts = 0;   // So far
  int64_t groups = 0;   // Likewise, ended
  // Ways to misuse NCCL, so far.
  int64_t calls_after_abort = 0;
  int64_t overlapping_calls = 0;  // Two threads in one communicator
  int64_t open_groups = 0;        // Started inside another, or ended without one
};

FakeCounts CountFake();

}  // namespace shoal
