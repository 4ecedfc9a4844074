// The exchange between real processes that are killed, frozen, or not what they seem.
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "base/check.h"
#include "base/prng.h"
#include "tests/worker/exchange_cell.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

constexpr int32_t kNumWorkers = 4;

// What the coordinator would say: form this epoch and run steps until one fails.
struct Command {
  uint64_t epoch = 0;
  int32_t num_ranks = 0;                     // 0: exit
  std::array<int32_t, kNumWorkers> workers;  // By rank
  int64_t create_ms = 20'000;
  int64_t step_ms = 20'000;
  int32_t max_steps = 1 << 30;
};

// How an epoch ended for one worker.
struct Report {
  int32_t worker = 0;
  uint64_t epoch = 0;
  absl::StatusCode code = absl::StatusCode::kOk;
  uint32_t suspects = 0;  // Bits by worker
  int32_t num_steps = 0;
  int64_t began = 0;  // The last operation, in Unix nanoseconds
  int64_t ended = 0;
};

CellShape ShapeOf(int32_t num_ranks) {
  return {.num_ranks = num_ranks, .hidden = 720};
}

// The parent's children, each with a factory that was made before the fork.
class Processes {
 public:
  explicit Processes(const char* kind)
      : steps_(static_cast<std::atomic<int32_t>*>(
            mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    CHECK_EQ(pipe(report_pipe_.data()), 0);
    for (int32_t i = 0; i < kNumWorkers; ++i) {
      factories_.push_back(*MakeExchangeFactory(kind, {}));
      endpoints_.push_back(factories_.back()->endpoint());
      CHECK_EQ(pipe(command_pipes_.emplace_back().data()), 0);
    }
    for (int32_t i = 0; i < kNumWorkers; ++i) {
      pids_.push_back(fork());
      if (pids_.back() == 0) Work(i);
    }
  }

  ~Processes() {
    for (const pid_t pid : pids_) {
      kill(pid, SIGKILL);
      waitpid(pid, nullptr, 0);
    }
    for (const auto& pipe : command_pipes_) Close(pipe);
    Close(report_pipe_);
    munmap(steps_, 4096);
  }

  void Tell(const Command& command) {
    for (int32_t rank = 0; rank < command.num_ranks; ++rank) {
      const auto worker = static_cast<size_t>(command.workers[static_cast<size_t>(rank)]);
      steps_[worker] = 0;
      CHECK_EQ(write(command_pipes_[worker][1], &command, sizeof(command)),
               static_cast<ssize_t>(sizeof(command)));
    }
  }

  // The next `count` reports; fewer if they don't come within a minute.
  std::vector<Report> Hear(size_t count) {
    std::vector<Report> reports;
    while (reports.size() < count) {
      pollfd readable{.fd = report_pipe_[0], .events = POLLIN, .revents = 0};
      if (poll(&readable, 1, 60'000) != 1) return reports;
      Report report;
      CHECK_EQ(read(report_pipe_[0], &report, sizeof(report)),
               static_cast<ssize_t>(sizeof(report)));
      reports.push_back(report);
    }
    return reports;
  }

  // Returns when `worker` has done that many steps of its epoch.
  void AwaitSteps(int32_t worker, int32_t steps) const {
    while (steps_[worker] < steps) sched_yield();
  }

  void Signal(int32_t worker, int signal) const {
    kill(pids_[static_cast<size_t>(worker)], signal);
  }

 private:
  static void Close(const std::array<int, 2>& pipe) {
    close(pipe[0]);
    close(pipe[1]);
  }

  [[noreturn]] void Work(int32_t worker) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto w = static_cast<size_t>(worker);
    std::unique_ptr<Exchange> exchange;
    Command command;
    while (read(command_pipes_[w][0], &command, sizeof(command)) == sizeof(command)) {
      exchange = nullptr;  // The verdict is there: now the epoch may be left.
      const Report report = Obey(worker, command, &exchange);
      if (write(report_pipe_[1], &report, sizeof(report)) != sizeof(report)) _exit(1);
    }
    _exit(0);
  }

  Report Obey(int32_t worker, const Command& command, std::unique_ptr<Exchange>* exchange) {
    const CellShape shape = ShapeOf(command.num_ranks);
    std::vector<std::string> endpoints;
    int32_t self = 0;
    for (int32_t rank = 0; rank < command.num_ranks; ++rank) {
      const int32_t member = command.workers[static_cast<size_t>(rank)];
      endpoints.push_back(endpoints_[static_cast<size_t>(member)]);
      if (member == worker) self = rank;
    }
    const std::vector<int32_t> rows(static_cast<size_t>(command.num_ranks), 3);
    const Traffic traffic = RandomTraffic(shape, rows, command.epoch);
    Membership membership = MakeMembership(endpoints, command.epoch, self, traffic.replicas);
    for (size_t rank = 0; rank < endpoints.size(); ++rank) {
      membership.members[rank].incarnation.value =
          100 + static_cast<uint64_t>(command.workers[rank]);
    }

    Report report{.worker = worker, .epoch = command.epoch, .began = absl::GetCurrentTimeNanos()};
    auto created = factories_[static_cast<size_t>(worker)]->Create(
        membership, shape.limits(), absl::Now() + absl::Milliseconds(command.create_ms));
    absl::Status status = created.status();
    if (status.ok()) *exchange = *std::move(created);
    while (status.ok() && report.num_steps < command.max_steps) {
      report.began = absl::GetCurrentTimeNanos();
      const absl::Time deadline = absl::Now() + absl::Milliseconds(command.step_ms);
      status = RunStep(shape, traffic, self, exchange->get(), deadline);
      if (status.ok()) steps_[worker] = ++report.num_steps;
    }
    report.ended = absl::GetCurrentTimeNanos();
    report.code = status.code();
    for (const Rank rank : SuspectsOf(status)) {
      report.suspects |= 1u << command.workers[static_cast<size_t>(rank.value)];
    }
    return report;
  }

  std::atomic<int32_t>* const steps_;  // [workers] of the present epoch; shared with the children
  std::array<int, 2> report_pipe_{};
  std::vector<std::array<int, 2>> command_pipes_;
  std::vector<std::unique_ptr<ExchangeFactory>> factories_;
  std::vector<std::string> endpoints_;
  std::vector<pid_t> pids_;
};

class ExchangeFaultTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Transports,
                         ExchangeFaultTest,
                         testing::Values("unix:", "tcp:127.0.0.1:0", "shm:"),
                         [](const auto& transport) {
                           const std::string kind = transport.param;
                           return kind.substr(0, kind.find(':'));
                         });

Command Epoch(uint64_t epoch, const std::vector<int32_t>& workers) {
  Command command{.epoch = epoch, .num_ranks = static_cast<int32_t>(workers.size())};
  command.workers.fill(-1);
  std::ranges::copy(workers, command.workers.begin());
  return command;
}

// Two workers die one after the other, each at some moment of the exchange.
TEST_P(ExchangeFaultTest, SurvivorsNameTheKilledAndFormTheNextEpoch) {
  Prng prng(20260703);
  for (int run = 0; run < 10; ++run) {
    SCOPED_TRACE(run);
    Processes processes(GetParam());
    std::vector<int32_t> alive = {0, 1, 2, 3};
    uint64_t epoch = 1;
    processes.Tell(Epoch(epoch, alive));
    while (alive.size() > 2) {
      const int32_t victim = alive[prng.Below(alive.size())];
      processes.AwaitSteps(victim, static_cast<int32_t>(1 + prng.Below(50)));
      const uint64_t moment = prng.Below(200);
      for (uint64_t i = 0; i < moment; ++i) sched_yield();
      const int64_t killed = absl::GetCurrentTimeNanos();
      processes.Signal(victim, SIGKILL);
      std::erase(alive, victim);

      const std::vector<Report> reports = processes.Hear(alive.size());
      ASSERT_EQ(reports.size(), alive.size());
      for (const Report& report : reports) {
        EXPECT_EQ(report.epoch, epoch);
        EXPECT_EQ(report.code, absl::StatusCode::kUnavailable);
        EXPECT_EQ(report.suspects, 1u << victim) << "reported by " << report.worker;
        EXPECT_LT(report.ended - killed, 3'000'000'000);
      }
      processes.Tell(Epoch(++epoch, alive));
    }
    processes.AwaitSteps(alive[0], 20);
    processes.AwaitSteps(alive[1], 20);
  }
}

TEST_P(ExchangeFaultTest, AFrozenWorkerCostsTheDeadlineAndDisturbsNobodyWhenItThaws) {
  Prng prng(20260704);
  for (int run = 0; run < 3; ++run) {
    SCOPED_TRACE(run);
    Processes processes(GetParam());
    Command command = Epoch(1, {0, 1, 2, 3});
    command.step_ms = 400;
    processes.Tell(command);
    const auto victim = static_cast<int32_t>(prng.Below(kNumWorkers));
    processes.AwaitSteps(victim, static_cast<int32_t>(1 + prng.Below(50)));
    processes.Signal(victim, SIGSTOP);

    // Who got the victim's last frame waits in the next round also for those that did not.
    bool is_named_alone = false;
    for (const Report& report : processes.Hear(3)) {
      EXPECT_EQ(report.code, absl::StatusCode::kDeadlineExceeded);
      EXPECT_TRUE(report.suspects & (1u << victim));
      is_named_alone |= report.suspects == 1u << victim;
      EXPECT_GE(report.ended - report.began, 399'000'000);
      EXPECT_LT(report.ended - report.began, 2'000'000'000);
    }
    EXPECT_TRUE(is_named_alone);

    std::vector<int32_t> alive = {0, 1, 2, 3};
    std::erase(alive, victim);
    processes.Tell(Epoch(2, alive));
    processes.AwaitSteps(alive[0], 5);
    processes.Signal(victim, SIGCONT);
    const std::vector<Report> zombie = processes.Hear(1);
    ASSERT_EQ(zombie.size(), 1u);
    EXPECT_EQ(zombie[0].worker, victim);
    EXPECT_EQ(zombie[0].epoch, 1u);
    EXPECT_NE(zombie[0].code, absl::StatusCode::kOk);
    EXPECT_NE(zombie[0].code, absl::StatusCode::kDataLoss);
    for (const int32_t worker : alive) processes.AwaitSteps(worker, 50);
  }
}

TEST_P(ExchangeFaultTest, DeathDuringCreateEndsItForAll) {
  Prng prng(20260705);
  for (int run = 0; run < 10; ++run) {
    SCOPED_TRACE(run);
    Processes processes(GetParam());
    Command command = Epoch(1, {0, 1, 2, 3});
    command.create_ms = 500;
    const auto victim = static_cast<int32_t>(prng.Below(kNumWorkers));
    processes.Tell(command);
    const uint64_t moment = prng.Below(30);
    for (uint64_t i = 0; i < moment; ++i) sched_yield();
    processes.Signal(victim, SIGKILL);

    std::vector<int32_t> alive = {0, 1, 2, 3};
    std::erase(alive, victim);
    for (const Report& report : processes.Hear(3)) {
      EXPECT_TRUE(report.code == absl::StatusCode::kUnavailable ||
                  report.code == absl::StatusCode::kDeadlineExceeded)
          << static_cast<int>(report.code);
      EXPECT_LT(report.ended - report.began, 3'000'000'000);
      // Not always the victim: who gives up first leaves, and then looks dead to the next one.
      EXPECT_NE(report.suspects, 0u);
    }
    processes.Tell(Epoch(2, alive));
    for (const int32_t worker : alive) processes.AwaitSteps(worker, 3);
  }
}

}  // namespace
}  // namespace shoal
