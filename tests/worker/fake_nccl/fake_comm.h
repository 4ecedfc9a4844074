// A communicator of the fake NCCL: a socket to every other rank, and a thread that connects them
// and puts groups on the stream.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "worker/exchange/descriptor.h"
#include "worker/exchange/host_stream.h"
#include "worker/exchange/nccl_abi.h"

namespace shoal {

struct FakeTransfer {
  bool is_send = false;
  std::byte* data = nullptr;
  size_t bytes = 0;
  int peer = 0;
  ShoalHostStream* stream = nullptr;
};

struct FakeGauges {
  std::atomic<int64_t> threads{0};
  std::atomic<int64_t> sockets{0};
};

// Threads: Launch and the rest from any, one at a time.
class FakeComm {
 public:
  // `meets`: false, its init never settles.
  FakeComm(uint64_t token, int num_ranks, int rank, bool meets, FakeGauges* gauges);
  // What ncclCommAbort does: ends init and operations, and waits for them, and until none is in a
  // record of the stream any more.
  ~FakeComm();

  FakeComm(const FakeComm&) = delete;
  FakeComm& operator=(const FakeComm&) = delete;

  int rank() const { return rank_; }

  NcclResult async() const { return async_; }

  // The first error stays.
  void SetAsync(NcclResult error);

  // All transfers are of one stream. They vanish if `arrives` is false. Whether the stream records
  // is a property of the whole operation: ranks that differ in it, or replay what was not recorded
  // together, fail as in an undefined behaviour of NCCL's.
  void Launch(std::vector<FakeTransfer> transfers, bool arrives);

  // As the death of this process would.
  void BreakConnections();

  std::atomic<int> num_callers{0};  // Of functions that are in this communicator

 private:
  // One peer's part of a group: its messages, in order, in both directions.
  struct Channel {
    std::vector<FakeTransfer> sends, receives;
    size_t send_index = 0, receive_index = 0;
    size_t sent = 0, received = 0;  // Of the present message, LengthAndRecord in front included
    uint64_t incoming = 0;          // That, as it came

    bool is_done() const { return send_index == sends.size() && receive_index == receives.size(); }
  };

  struct Group {
    FakeComm* comm = nullptr;
    std::vector<FakeTransfer> transfers;
    bool arrives = true;
    uint64_t record = 0;  // Its number among recorded groups, from 1; 0: not recorded
  };

  void Run();
  void Connect();
  bool Accept(const Descriptor& listener);
  bool Dial(int peer);
  static void RunGroup(void* group);
  static void DropGroup(void* group);
  void Move(const Group& group);
  void Progress(uint64_t record, std::vector<Channel>* channels);
  // True: it moved something.
  bool Send(int peer, uint64_t record, Channel* channel);
  bool Receive(int peer, uint64_t record, Channel* channel);
  bool Transferred(ssize_t result);

  const uint64_t token_;
  const int num_ranks_;
  const int rank_;
  const bool meets_;
  FakeGauges* const gauges_;
  std::vector<Descriptor> sockets_;  // By rank; the thread's until init settles, then the stream's

  // Read without the mutex by threads that only look.
  std::atomic<bool> is_aborted_{false};
  std::atomic<bool> is_connected_{false};  // Then sockets_ stay as they are
  std::atomic<NcclResult> async_{NcclResult::kInProgress};

  absl::Mutex mutex_;
  std::deque<Group*> launches_ ABSL_GUARDED_BY(mutex_);
  int num_running_ ABSL_GUARDED_BY(mutex_) = 0;  // On the stream or in its records
  uint64_t num_recorded_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: starts when everything above exists
};

}  // namespace shoal
