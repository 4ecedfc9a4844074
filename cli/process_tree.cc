#include "cli/process_tree.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/check.h"

extern char** environ;

namespace shoal {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(50);
constexpr absl::Duration kLongestPause = absl::Seconds(5);
// A child that lived this long did not die of its start.
constexpr absl::Duration kYoung = absl::Seconds(10);
// Upper bound of a wait; a pidfd or the eventfd usually ends it.
constexpr absl::Duration kLongestWait = absl::Milliseconds(500);

pid_t Spawn(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // Children start with no signal blocked, and in a process group of their own: Ctrl-C in a
  // terminal goes to the parent, which then ends them in order.
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  return error == 0 ? pid : 0;
}

}  // namespace

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int number = WTERMSIG(wait_status);
    return absl::StrCat("killed by signal ", number, " (", strsignal(number), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(wait_status));
}

ProcessTree::ProcessTree(std::vector<Child> children,
                         std::vector<int> give_up_codes,
                         OnExit on_exit)
    : children_(std::move(children)),
      give_up_codes_(std::move(give_up_codes)),
      on_exit_(std::move(on_exit)),
      wake_(eventfd(0, EFD_CLOEXEC)),
      states_(children_.size()) {
  CHECK_GE(wake_, 0);
  for (State& state : states_) state.pause = kFirstPause;
  thread_ = std::thread([this] { Run(); });
}

ProcessTree::~ProcessTree() {
  const uint64_t one = 1;
  CHECK_EQ(write(wake_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  thread_.join();
  close(wake_);
}

pid_t ProcessTree::pid(int index) const {
  absl::MutexLock lock(&mutex_);
  return states_[static_cast<size_t>(index)].pid;
}

void ProcessTree::Run() {
  for (;;) {
    absl::Time now = absl::Now();
    StartDue(now);
    std::vector<pollfd> waits = {{wake_, POLLIN, 0}};
    absl::Time until = now + kLongestWait;
    {
      absl::MutexLock lock(&mutex_);
      for (const State& state : states_) {
        if (state.pid != 0) {
          const int fd = static_cast<int>(syscall(SYS_pidfd_open, state.pid, 0));
          if (fd >= 0) waits.push_back({fd, POLLIN, 0});
        } else if (!state.gave_up) {
          until = std::min(until, state.start_at);
        }
      }
    }
    const int64_t wait_ms = absl::ToInt64Milliseconds(until - now) + 1;
    poll(waits.data(), waits.size(), static_cast<int>(std::max<int64_t>(0, wait_ms)));
    for (size_t i = 1; i < waits.size(); ++i) close(waits[i].fd);
    if ((waits[0].revents & POLLIN) != 0) return StopAll();
    Reap(absl::Now());
  }
}

void ProcessTree::StartDue(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < states_.size(); ++i) {
    State& state = states_[i];
    if (state.pid != 0 || state.gave_up || state.start_at > now) continue;
    state.pid = Spawn(children_[i].command);
    state.started = now;
    if (state.pid == 0) state.start_at = now + kLongestPause;
  }
}

void ProcessTree::Reap(absl::Time now) {
  struct Exit {
    int index;
    std::string how;
    bool gives_up;
  };

  std::vector<Exit> exits;
  {
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < states_.size(); ++i) {
      State& state = states_[i];
      int status = 0;
      if (state.pid == 0 || waitpid(state.pid, &status, WNOHANG) != state.pid) continue;
      state.pid = 0;
      state.gave_up = WIFEXITED(status) && std::find(give_up_codes_.begin(),
                                                     give_up_codes_.end(),
                                                     WEXITSTATUS(status)) != give_up_codes_.end();
      if (now - state.started > kYoung) state.pause = kFirstPause;
      state.start_at = now + state.pause;
      state.pause = std::min(state.pause * 2, kLongestPause);
      exits.push_back({static_cast<int>(i), DescribeExit(status), state.gave_up});
    }
  }
  for (const Exit& exit : exits) on_exit_(exit.index, exit.how, exit.gives_up);
}

void ProcessTree::StopAll() {
  absl::MutexLock lock(&mutex_);
  const absl::Time deadline = absl::Now() + kGrace;
  for (const State& state : states_) {
    if (state.pid != 0) kill(state.pid, SIGTERM);
  }
  for (State& state : states_) {
    if (state.pid == 0) continue;
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, state.pid, 0));
    pollfd wait = {fd, POLLIN, 0};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (fd < 0 || poll(&wait, 1, static_cast<int>(std::max<int64_t>(0, left))) != 1) {
      kill(state.pid, SIGKILL);
    }
    if (fd >= 0) close(fd);
    waitpid(state.pid, nullptr, 0);
    state.pid = 0;
  }
}

}  // namespace shoal
