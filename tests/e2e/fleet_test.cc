// A real fleet of processes on loopback: killed mid-stream, overloaded, cancelled; the tokens must
// be those of an undisturbed run, and nothing may be left behind.
//
// SHOAL_KILLS: how many kills (default 12; the long run takes 100). SHOAL_SEED: their moments and
// victims.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/signals.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

constexpr int kVocabulary = 128;
constexpr absl::Duration kPatience = absl::Seconds(60);

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  uint64_t value = otherwise;
  if (const char* text = std::getenv(name); text != nullptr) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &value)) << name;
  }
  return value;
}

v1::GenerateRequest MakeRequest(uint64_t seed, int prompt_length, int max_tokens) {
  v1::GenerateRequest request;
  Prng prng(seed);
  for (int i = 0; i < prompt_length; ++i) {
    request.mutable_tokens()->add_ids(static_cast<uint32_t>(prng.Below(kVocabulary)));
  }
  request.mutable_sampling()->set_seed(static_cast<int64_t>(seed));
  request.mutable_limits()->set_max_tokens(static_cast<uint32_t>(max_tokens));
  request.mutable_limits()->set_ignore_eos(true);
  return request;
}

struct Stream {
  absl::Status status;
  std::vector<uint32_t> tokens;
  absl::Duration longest_gap;
  bool is_finished = false;
};

Stream RunStream(const Client& client,
                 const v1::GenerateRequest& request,
                 std::atomic<int64_t>* progress,
                 int cancel_after = -1) {
  Stream stream;
  absl::Time last = absl::InfiniteFuture();
  stream.status =
      client.Generate(request, absl::Now() + kPatience, [&](const v1::GenerateEvent& event) {
        stream.is_finished = stream.is_finished || event.has_finished();
        if (!event.has_chunk()) return true;
        const absl::Time now = absl::Now();
        if (last != absl::InfiniteFuture()) {
          stream.longest_gap = std::max(stream.longest_gap, now - last);
        }
        last = now;
        EXPECT_EQ(event.chunk().first_index(), stream.tokens.size());
        stream.tokens.insert(stream.tokens.end(),
                             event.chunk().token_ids().begin(),
                             event.chunk().token_ids().end());
        if (progress != nullptr) progress->fetch_add(event.chunk().token_ids_size());
        return cancel_after < 0 || static_cast<int>(stream.tokens.size()) < cancel_after;
      });
  return stream;
}

std::unique_ptr<LocalFleet> StartFleet(int workers, int64_t kv_tokens) {
  LocalFleetOptions options{
      .with_tokenizer = false, .program = SHOAL_BINARY_DIR "/cli/shoal", .is_quiet = true};
  options.cluster.model = "tiny";
  options.cluster.load_format = "dummy";
  options.cluster.workers = workers;
  options.cluster.kv_tokens = kv_tokens;
  options.cluster.max_rows = 256;
  options.cluster.chunk = 128;
  auto fleet = LocalFleet::Start(options);
  EXPECT_TRUE(fleet.ok()) << fleet.status();
  if (!fleet.ok()) return nullptr;
  const absl::Status ready = (*fleet)->WaitReady(absl::Now() + kPatience);
  EXPECT_TRUE(ready.ok()) << ready;
  return ready.ok() ? *std::move(fleet) : nullptr;
}

template <typename Done>
bool WaitFor(const Done& done) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!done()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

int UsedBlocks(LocalFleet* fleet) {
  int used = 0;
  for (const CellStatus& cell : fleet->Status().cells) {
    for (const WorkerStatus& worker : cell.workers) {
      used += worker.full_blocks_used + worker.window_blocks_used;
    }
  }
  return used;
}

int64_t ResidentBytes(pid_t pid) {
  std::ifstream statm("/proc/" + std::to_string(pid) + "/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

class FleetTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { BlockTerminationSignals(); }
};

TEST_F(FleetTest, KilledWorkersChangeNoToken) {
  constexpr int kStreams = 32;
  constexpr int kTokens = 40;
  const uint64_t seed = FromEnvironment("SHOAL_SEED", 1);
  const uint64_t kills = FromEnvironment("SHOAL_KILLS", 12);
  const std::unique_ptr<LocalFleet> fleet = StartFleet(4, 16384);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  std::vector<v1::GenerateRequest> requests;
  for (uint64_t i = 0; i < kStreams; ++i) {
    requests.push_back(MakeRequest(i, 1 + static_cast<int>(i * 11 % 140), kTokens));
  }
  const auto run_all = [&](std::atomic<int64_t>* progress) {
    std::vector<Stream> streams(kStreams);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kStreams; ++i) {
      threads.emplace_back([&, i] { streams[i] = RunStream(client, requests[i], progress); });
    }
    for (std::thread& thread : threads) thread.join();
    return streams;
  };
  std::atomic<int64_t> undisturbed_progress = 0;
  const std::vector<Stream> undisturbed = run_all(&undisturbed_progress);
  std::vector<double> gaps;
  Prng prng(seed);

  for (uint64_t kill = 0; kill < kills; ++kill) {
    ASSERT_TRUE(WaitFor([&] {
      const FleetStatus status = fleet->Status();
      return status.is_ready && status.cells.size() == 1 && status.cells[0].workers.size() == 4 &&
             std::all_of(status.cells[0].workers.begin(),
                         status.cells[0].workers.end(),
                         [](const WorkerStatus& worker) { return worker.rank.value >= 0; });
    })) << "the fleet is not whole again, kill "
        << kill << ", SHOAL_SEED=" << seed;
    std::atomic<int64_t> progress = 0;
    const auto moment = static_cast<int64_t>(prng.Below(kStreams * kTokens * 9 / 10));
    const auto victim = static_cast<int>(prng.Below(4));
    std::thread killer([&] {
      WaitFor([&] { return progress >= moment; });
      EXPECT_TRUE(fleet->KillWorker(victim));
    });
    const std::vector<Stream> streams = run_all(&progress);
    killer.join();
    absl::Duration longest;
    for (size_t i = 0; i < kStreams; ++i) {
      ASSERT_TRUE(streams[i].status.ok())
          << streams[i].status << ", stream " << i << ", kill " << kill << ", SHOAL_SEED=" << seed;
      ASSERT_EQ(streams[i].tokens, undisturbed[i].tokens)
          << "stream " << i << ", kill " << kill << ", SHOAL_SEED=" << seed;
      longest = std::max(longest, streams[i].longest_gap);
    }
    gaps.push_back(absl::ToDoubleMilliseconds(longest));
  }

  std::sort(gaps.begin(), gaps.end());
  if (!gaps.empty()) {
    std::printf("%zu kills, longest gap of a stream: median %.0f ms, maximum %.0f ms\n",
                gaps.size(),
                gaps[gaps.size() / 2],
                gaps.back());
  }
  EXPECT_TRUE(WaitFor([&] { return UsedBlocks(fleet.get()) == 0; })) << UsedBlocks(fleet.get());
}

TEST_F(FleetTest, ACacheThatIsTooSmallLosesNobodyAndLeavesNothing) {
  constexpr int kStreams = 200;
  constexpr int kRounds = 5;
  // 200 streams of up to 190 tokens want some 20,000 positions; four workers have 4 x 1,024.
  const std::unique_ptr<LocalFleet> fleet = StartFleet(4, 1024);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  std::vector<int64_t> resident(
      kRounds);  // Of the coordinator's process, which is this one, and the workers

  for (int round = 0; round < kRounds; ++round) {
    std::atomic<int> finished = 0, cancelled = 0, refused = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < kStreams; ++i) {
      threads.emplace_back([&, i] {
        Prng prng(static_cast<uint64_t>(i));
        // Some can never fit: they must be refused at once, with the number that would.
        const int prompt = i % 50 == 49 ? 5000 : 1 + static_cast<int>(prng.Below(150));
        const int tokens = 1 + static_cast<int>(prng.Below(40));
        const int cancel_after = prng.Chance(25) ? static_cast<int>(prng.Below(20)) : -1;
        const Stream stream =
            RunStream(client, MakeRequest(prng.Next(), prompt, tokens), nullptr, cancel_after);
        if (stream.status.ok()) {
          EXPECT_EQ(stream.tokens.size(), static_cast<size_t>(tokens));
          ++finished;
        } else if (absl::IsCancelled(stream.status)) {
          EXPECT_GE(cancel_after, 0);
          ++cancelled;
        } else {
          EXPECT_TRUE(absl::IsResourceExhausted(stream.status) ||
                      absl::IsInvalidArgument(stream.status))
              << stream.status;
          EXPECT_EQ(prompt, 5000) << stream.status;
          ++refused;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(finished + cancelled + refused, kStreams);
    EXPECT_EQ(refused, kStreams / 50);
    EXPECT_TRUE(WaitFor([&] { return UsedBlocks(fleet.get()) == 0; })) << UsedBlocks(fleet.get());
    resident[static_cast<size_t>(round)] = ResidentBytes(getpid());
    for (int i = 0; i < 4; ++i)
      resident[static_cast<size_t>(round)] += ResidentBytes(fleet->WorkerPid(i));
    std::printf("round %d: %d finished, %d cancelled, %d refused, %.1f MB resident\n",
                round + 1,
                finished.load(),
                cancelled.load(),
                refused.load(),
                static_cast<double>(resident[static_cast<size_t>(round)]) / 1e6);
  }

  EXPECT_GT(fleet->Status().preemptions, 0);
  // Allocators keep what the busiest moment needed; a leak of every request would be above this.
  EXPECT_LT(resident[kRounds - 1] - resident[1], int64_t{8} << 20);
}

TEST_F(FleetTest, TooFewWorkersMeansWaitingForOneToComeBack) {
  const std::unique_ptr<LocalFleet> fleet = StartFleet(1, 4096);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  const v1::GenerateRequest request = MakeRequest(3, 20, 200);
  std::atomic<int64_t> undisturbed_progress = 0;
  const Stream undisturbed = RunStream(client, request, &undisturbed_progress);
  std::atomic<int64_t> progress = 0;
  std::thread killer([&] {
    WaitFor([&] { return progress >= 10; });
    EXPECT_TRUE(fleet->KillWorker(0));
  });

  const Stream stream = RunStream(client, request, &progress);
  killer.join();

  EXPECT_TRUE(stream.status.ok()) << stream.status;
  EXPECT_EQ(stream.tokens, undisturbed.tokens);
}

}  // namespace
}  // namespace shoal
