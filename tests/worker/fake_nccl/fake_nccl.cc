#include "tests/worker/fake_nccl/fake_nccl.h"

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

#include "base/check.h"
#include "tests/worker/fake_nccl/fake_comm.h"

namespace shoal {
namespace {

struct Script {
  int version = kNcclVersion;
  bool init_hangs = false;
  bool init_call_hangs = false;
  bool abort_hangs = false;
  bool id_fails = false;
  int64_t drop_from = -1;
  int64_t die_in_group = -1;
};

Script ReadScript() {
  Script script;
  const char* const text = std::getenv("FAKE_NCCL");
  if (text == nullptr) return script;
  for (const absl::string_view entry : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(entry, absl::MaxSplits('=', 1));
    const auto& [name, value] = pair;
    bool is_known = true;
    if (name == "version") {
      is_known = absl::SimpleAtoi(value, &script.version);
    } else if (name == "drop") {
      is_known = absl::SimpleAtoi(value, &script.drop_from);
    } else if (name == "die_in_group") {
      is_known = absl::SimpleAtoi(value, &script.die_in_group);
    } else if (name == "init") {
      is_known = script.init_hangs = value == "hang";
    } else if (name == "init_call") {
      is_known = script.init_call_hangs = value == "hang";
    } else if (name == "abort") {
      is_known = script.abort_hangs = value == "hang";
    } else {
      is_known = script.id_fails = name == "id" && value == "fail";
    }
    CHECK(is_known);
  }
  return script;
}

struct World {
  const Script script = ReadScript();
  FakeGauges gauges;

  absl::Mutex mutex;
  FakeHook hook ABSL_GUARDED_BY(mutex);
  uint64_t next_handle ABSL_GUARDED_BY(mutex) = 1;
  std::map<uint64_t, std::shared_ptr<FakeComm>> comms ABSL_GUARDED_BY(mutex);
  FakeCounts counts ABSL_GUARDED_BY(mutex);
};

World& TheWorld() {
  static auto* const world = [] {
    // In debug builds Abseil keeps a graph of the order of locks, under a lock of its own that the
    // thread sanitizer cannot see.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    return new World;
  }();
  return *world;
}

uint64_t KeyOf(NcclCommHandle comm) {
  return reinterpret_cast<uint64_t>(comm);
}

std::shared_ptr<FakeComm> Find(NcclCommHandle comm) {
  World& world = TheWorld();
  absl::MutexLock lock(&world.mutex);
  const auto found = world.comms.find(KeyOf(comm));
  if (found != world.comms.end()) return found->second;
  ++world.counts.calls_after_abort;
  return nullptr;
}

NcclResult AskHook(FakeCall call, int rank, NcclCommHandle comm) {
  World& world = TheWorld();
  FakeHook hook;
  {
    absl::MutexLock lock(&world.mutex);
    hook = world.hook;
  }
  return hook == nullptr ? NcclResult::kSuccess : hook(call, rank, comm);
}

// One function's stay in a communicator. Two at once are what NCCL does not allow.
class Visit {
 public:
  explicit Visit(NcclCommHandle handle) : comm_(Find(handle)) {
    if (comm_ == nullptr || comm_->num_callers++ == 0) return;
    absl::MutexLock lock(&TheWorld().mutex);
    ++TheWorld().counts.overlapping_calls;
  }

  ~Visit() {
    if (comm_ != nullptr) --comm_->num_callers;
  }

  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;

  FakeComm* comm() const { return comm_.get(); }

 private:
  const std::shared_ptr<FakeComm> comm_;
};

void CountOpenGroup() {
  absl::MutexLock lock(&TheWorld().mutex);
  ++TheWorld().counts.open_groups;
}

[[noreturn]] void Hang() {
  while (true) pause();
}

// The calling thread's group, as in NCCL.
thread_local bool is_in_group = false;
thread_local NcclResult group_error = NcclResult::kSuccess;
thread_local std::map<NcclCommHandle, std::vector<FakeTransfer>> group_transfers;

NcclResult Add(NcclCommHandle handle, bool is_send, FakeTransfer transfer) {
  const Visit visit(handle);
  if (visit.comm() == nullptr) return NcclResult::kInvalidArgument;
  const FakeCall call = is_send ? FakeCall::kSend : FakeCall::kRecv;
  const NcclResult answer = AskHook(call, visit.comm()->rank(), handle);
  if (answer != NcclResult::kSuccess) return group_error = answer;
  if (!is_in_group) CountOpenGroup();
  transfer.is_send = is_send;
  group_transfers[handle].push_back(transfer);
  return NcclResult::kSuccess;
}

}  // namespace

void SetFakeHook(FakeHook hook) {
  absl::MutexLock lock(&TheWorld().mutex);
  TheWorld().hook = std::move(hook);
}

void DropFakeConnections(NcclCommHandle comm) {
  World& world = TheWorld();
  absl::MutexLock lock(&world.mutex);
  if (const auto found = world.comms.find(KeyOf(comm)); found != world.comms.end()) {
    found->second->BreakConnections();
  }
}

FakeCounts CountFake() {
  World& world = TheWorld();
  absl::MutexLock lock(&world.mutex);
  FakeCounts counts = world.counts;
  counts.comms = static_cast<int64_t>(world.comms.size());
  counts.threads = world.gauges.threads;
  counts.sockets = world.gauges.sockets;
  return counts;
}

}  // namespace shoal

using shoal::FakeCall;
using shoal::NcclCommHandle;
using shoal::NcclResult;
using shoal::TheWorld;

extern "C" {

// What tells libnccl.so.2 from this: see NcclApi::is_on_host.
int shoal_nccl_on_host = 1;

NcclResult ncclGetVersion(int* version) {
  *version = TheWorld().script.version;
  return NcclResult::kSuccess;
}

NcclResult ncclGetUniqueId(shoal::NcclUniqueId* id) {
  if (TheWorld().script.id_fails) return NcclResult::kSystemError;
  const NcclResult answer = shoal::AskHook(FakeCall::kGetUniqueId, -1, nullptr);
  if (answer != NcclResult::kSuccess) return answer;
  std::random_device device;
  const uint64_t token = uint64_t{device()} << 32 | device();
  std::memset(id->bytes, 0x5a, sizeof(id->bytes));
  std::memcpy(id->bytes, &token, sizeof(token));
  return NcclResult::kSuccess;
}

NcclResult ncclCommInitRankConfig(NcclCommHandle* comm,
                                  int num_ranks,
                                  shoal::NcclUniqueId id,
                                  int rank,
                                  shoal::NcclConfig* config) {
  *comm = nullptr;
  shoal::World& world = TheWorld();
  if (world.script.init_call_hangs) shoal::Hang();
  const NcclResult answer = shoal::AskHook(FakeCall::kInit, rank, nullptr);
  if (answer != NcclResult::kSuccess && answer != NcclResult::kInProgress) return answer;
  if (config->magic != 0xcafebeef || config->blocking != 0 || rank < 0 || rank >= num_ranks) {
    return NcclResult::kInvalidArgument;
  }
  uint64_t token = 0;
  std::memcpy(&token, id.bytes, sizeof(token));
  // The hook's kInProgress: for ever.
  const bool meets = !world.script.init_hangs && answer == NcclResult::kSuccess;
  auto made = std::make_shared<shoal::FakeComm>(token, num_ranks, rank, meets, &world.gauges);
  absl::MutexLock lock(&world.mutex);
  const uint64_t key = world.next_handle++;
  world.comms[key] = std::move(made);
  *comm = reinterpret_cast<NcclCommHandle>(key);
  return NcclResult::kInProgress;
}

NcclResult ncclCommGetAsyncError(NcclCommHandle comm, NcclResult* async) {
  const shoal::Visit visit(comm);
  if (visit.comm() == nullptr) return NcclResult::kInvalidArgument;
  const NcclResult answer = shoal::AskHook(FakeCall::kGetAsyncError, visit.comm()->rank(), comm);
  if (answer != NcclResult::kSuccess) visit.comm()->SetAsync(answer);
  *async = visit.comm()->async();
  return NcclResult::kSuccess;
}

NcclResult ncclCommAbort(NcclCommHandle comm) {
  shoal::World& world = TheWorld();
  std::shared_ptr<shoal::FakeComm> last;
  {
    const shoal::Visit visit(comm);
    if (visit.comm() == nullptr) return NcclResult::kInvalidArgument;
    shoal::AskHook(FakeCall::kAbort, visit.comm()->rank(), comm);
    if (world.script.abort_hangs) shoal::Hang();
    absl::MutexLock lock(&world.mutex);
    last = std::move(world.comms.extract(shoal::KeyOf(comm)).mapped());
    ++world.counts.aborts;
  }
  last.reset();
  return NcclResult::kSuccess;
}

NcclResult ncclGroupStart() {
  const NcclResult answer = shoal::AskHook(FakeCall::kGroupStart, -1, nullptr);
  if (answer != NcclResult::kSuccess) return answer;
  if (shoal::is_in_group) shoal::CountOpenGroup();
  shoal::is_in_group = true;
  shoal::group_error = NcclResult::kSuccess;
  return NcclResult::kSuccess;
}

NcclResult ncclGroupEnd() {
  shoal::World& world = TheWorld();
  auto transfers = std::exchange(shoal::group_transfers, {});
  if (!std::exchange(shoal::is_in_group, false)) shoal::CountOpenGroup();
  if (shoal::group_error != NcclResult::kSuccess) return shoal::group_error;
  int64_t number = 0;
  {
    absl::MutexLock lock(&world.mutex);
    number = world.counts.groups++;
  }
  if (number == world.script.die_in_group) raise(SIGKILL);
  const NcclResult answer = shoal::AskHook(FakeCall::kGroupEnd, -1, nullptr);
  if (answer != NcclResult::kSuccess && answer != NcclResult::kInProgress) return answer;
  const bool is_dropped = answer == NcclResult::kInProgress;
  const bool arrives =
      !is_dropped && (world.script.drop_from < 0 || number < world.script.drop_from);
  for (auto& [handle, list] : transfers) {
    const shoal::Visit visit(handle);
    if (visit.comm() == nullptr) return NcclResult::kInvalidArgument;
    visit.comm()->Launch(std::move(list), arrives);
  }
  return NcclResult::kInProgress;
}

NcclResult ncclSend(
    const void* data, size_t count, int /*type*/, int peer, NcclCommHandle comm, void* stream) {
  return shoal::Add(comm,
                    true,
                    {.data = static_cast<std::byte*>(const_cast<void*>(data)),
                     .bytes = count,
                     .peer = peer,
                     .stream = static_cast<ShoalHostStream*>(stream)});
}

NcclResult ncclRecv(
    void* data, size_t count, int /*type*/, int peer, NcclCommHandle comm, void* stream) {
  return shoal::Add(comm,
                    false,
                    {.data = static_cast<std::byte*>(data),
                     .bytes = count,
                     .peer = peer,
                     .stream = static_cast<ShoalHostStream*>(stream)});
}

const char* ncclGetErrorString(NcclResult result) {
  switch (result) {
    case NcclResult::kSuccess:
      return "no error";
    case NcclResult::kUnhandledCudaError:
      return "unhandled cuda error";
    case NcclResult::kSystemError:
      return "unhandled system error";
    case NcclResult::kInternalError:
      return "internal error";
    case NcclResult::kInvalidArgument:
      return "invalid argument";
    case NcclResult::kInvalidUsage:
      return "invalid usage";
    case NcclResult::kRemoteError:
      return "remote process exited or there was a network error";
    case NcclResult::kInProgress:
      return "NCCL operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(NcclCommHandle /*comm*/) {
  return "";
}

}  // extern "C"

namespace shoal {

NcclApi FakeNcclApi() {
  return {.get_version = ncclGetVersion,
          .get_unique_id = ncclGetUniqueId,
          .comm_init_rank_config = ncclCommInitRankConfig,
          .comm_get_async_error = ncclCommGetAsyncError,
          .comm_abort = ncclCommAbort,
          .group_start = ncclGroupStart,
          .group_end = ncclGroupEnd,
          .send = ncclSend,
          .recv = ncclRecv,
          .get_error_string = ncclGetErrorString,
          .get_last_error = ncclGetLastError,
          .version = kNcclVersion,
          .path = "the fake",
          .is_on_host = true};
}

}  // namespace shoal
