// Child processes of one parent: started, watched, started again when they die.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace shoal {

// One thread owns all children: it spawns, waits and restarts them, so that PR_SET_PDEATHSIG, which
// is bound to the spawning thread, holds for as long as the tree does. Thread-safe.
//
// A child that was killed or failed is started again after a pause that doubles from 50 ms to 5 s
// while it keeps dying young. A child that exits with a code of `give_up_codes` is not: its fault
// would not go away.
class ProcessTree {
 public:
  struct Child {
    std::vector<std::string> command;  // command[0]: the path of the program
  };

  // Called on the tree's thread when a child ended. `gives_up`: it will not be started again.
  using OnExit = std::function<void(int index, const std::string& how, bool gives_up)>;

  ProcessTree(std::vector<Child> children, std::vector<int> give_up_codes, OnExit on_exit);
  // SIGTERM to all, SIGKILL to those that are still there after `kGrace`.
  ~ProcessTree();

  ProcessTree(const ProcessTree&) = delete;
  ProcessTree& operator=(const ProcessTree&) = delete;

  // Current process of a child; 0 while it is down.
  pid_t pid(int index) const ABSL_LOCKS_EXCLUDED(mutex_);

  static constexpr absl::Duration kGrace = absl::Seconds(10);

 private:
  struct State {
    pid_t pid = 0;
    absl::Time started;
    absl::Time start_at;  // When it is down: when to start it
    absl::Duration pause;
    bool gave_up = false;
  };

  void Run();
  void StartDue(absl::Time now);
  void Reap(absl::Time now);
  void StopAll();

  const std::vector<Child> children_;
  const std::vector<int> give_up_codes_;
  const OnExit on_exit_;
  const int wake_;  // eventfd: written once, to stop
  mutable absl::Mutex mutex_;
  std::vector<State> states_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// "exited with code 1", "killed by signal 9 (Killed)".
std::string DescribeExit(int wait_status);

}  // namespace shoal
