// A real fleet of processes on loopback: killed mid-stream, overloaded, cancelled; the tokens must
// be those of an undisturbed run, and nothing may be left behind.
//
// SHOAL_KILLS: how many kills (default 12; the long run takes 100). SHOAL_SEED: their moments and
// victims.

#include <malloc.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/local_fleet.h"
#include "cli/signals.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "tests/e2e/await_status.h"
#include "tests/e2e/progress.h"

namespace shoal {
namespace {

constexpr int kVocabulary = 128;
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr char kLibrary[] = "SHOAL_NCCL_LIBRARY";
constexpr char kFakeNccl[] = SHOAL_BINARY_DIR "/tests/worker/fake_nccl/libfake_nccl.so";

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
                 Progress* progress,
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
        if (progress != nullptr) progress->Add(event.chunk().token_ids_size());
        return cancel_after < 0 || static_cast<int>(stream.tokens.size()) < cancel_after;
      });
  return stream;
}

std::unique_ptr<LocalFleet> StartFleet(int workers,
                                       int64_t kv_tokens,
                                       const std::string& exchange = "shm") {
  LocalFleetOptions options{
      .with_tokenizer = false, .program = SHOAL_BINARY_DIR "/cli/shoal", .is_quiet = true};
  options.cluster.model = "tiny";
  options.cluster.load_format = "dummy";
  options.cluster.workers = workers;
  options.cluster.exchange = exchange;
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

int UsedBlocks(const FleetStatus& status) {
  int used = 0;
  for (const CellStatus& cell : status.cells) {
    for (const WorkerStatus& worker : cell.workers) {
      used += worker.full_blocks_used + worker.window_blocks_used;
    }
  }
  return used;
}

bool HasFourRanks(const FleetStatus& status) {
  return status.is_ready && status.cells.size() == 1 && status.cells[0].workers.size() == 4 &&
         std::all_of(status.cells[0].workers.begin(),
                     status.cells[0].workers.end(),
                     [](const WorkerStatus& worker) { return worker.rank.value >= 0; });
}

class FleetTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { BlockTerminationSignals(); }
};

void ExpectKillsChangeNoToken(const std::string& exchange, uint64_t kills) {
  constexpr int kStreams = 32;
  constexpr int kTokens = 40;
  const uint64_t seed = FromEnvironment("SHOAL_SEED", 1);
  const std::unique_ptr<LocalFleet> fleet = StartFleet(4, 16384, exchange);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  std::vector<v1::GenerateRequest> requests;
  for (uint64_t i = 0; i < kStreams; ++i) {
    requests.push_back(MakeRequest(i, 1 + static_cast<int>(i * 11 % 140), kTokens));
  }
  const auto run_all = [&](Progress* progress) {
    std::vector<Stream> streams(kStreams);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kStreams; ++i) {
      threads.emplace_back([&, i] { streams[i] = RunStream(client, requests[i], progress); });
    }
    for (std::thread& thread : threads) thread.join();
    return streams;
  };
  const std::vector<Stream> undisturbed = run_all(nullptr);
  std::vector<double> gaps;
  Prng prng(seed);

  for (uint64_t kill = 0; kill < kills; ++kill) {
    ASSERT_TRUE(AwaitStatus(fleet.get(), HasFourRanks, absl::Now() + kPatience))
        << "the fleet is not whole again, kill " << kill << ", SHOAL_SEED=" << seed;
    Progress progress;
    const auto moment = static_cast<int64_t>(prng.Below(kStreams * kTokens * 9 / 10));
    const auto victim = static_cast<int>(prng.Below(4));
    std::thread killer([&] {
      EXPECT_TRUE(progress.AwaitTokens(moment, absl::Now() + kPatience));
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
  const auto is_empty = [](const FleetStatus& status) { return UsedBlocks(status) == 0; };
  EXPECT_TRUE(AwaitStatus(fleet.get(), is_empty, absl::Now() + kPatience))
      << UsedBlocks(fleet->Status());
}

TEST_F(FleetTest, KilledWorkersChangeNoToken) {
  ExpectKillsChangeNoToken("shm", FromEnvironment("SHOAL_KILLS", 12));
}

// The same over NCCL's exchange, with a NCCL for host memory: unique ids by way of the coordinator,
// communicators aborted and made anew.
TEST_F(FleetTest, KilledWorkersOfANcclFleetChangeNoToken) {
  ExpectKillsChangeNoToken(absl::StrCat("nccl:", kFakeNccl), FromEnvironment("SHOAL_KILLS", 4));
}

// A survivor whose ncclCommAbort hangs ends itself, and is one more lost worker.
TEST_F(FleetTest, WorkersThatHangInAnAbortEndAndTheStreamGoesOn) {
  setenv(kLibrary, kFakeNccl, 1);
  setenv("FAKE_NCCL", "abort=hang", 1);
  const std::unique_ptr<LocalFleet> fleet = StartFleet(3, 4096, "nccl");
  unsetenv("FAKE_NCCL");  // Those that are started in their place are sound
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  const v1::GenerateRequest request = MakeRequest(5, 20, 120);
  const Stream undisturbed = RunStream(client, request, nullptr);
  const pid_t survivor = fleet->WorkerPid(0);
  Progress progress;
  std::thread killer([&] {
    EXPECT_TRUE(progress.AwaitTokens(10, absl::Now() + kPatience));
    EXPECT_TRUE(fleet->KillWorker(2));
  });

  const Stream stream = RunStream(client, request, &progress);
  killer.join();
  unsetenv(kLibrary);

  EXPECT_TRUE(stream.status.ok()) << stream.status;
  EXPECT_EQ(stream.tokens, undisturbed.tokens);
  EXPECT_NE(fleet->WorkerPid(0), survivor) << "it was to end by itself";
  std::printf("longest gap %.1f s\n", absl::ToDoubleSeconds(stream.longest_gap));
}

// ---- 200 streams on a cache that is too small

constexpr int kManyStreams = 200;
constexpr int kRounds = 5;

// A leak of what a request takes, a kilobyte, would show in the 600 of three rounds, of which every
// worker is the home of 150. Found without one, in eight runs: 26 to 126 kB in use by the
// coordinator's process, 24 to 60 kB resident in a worker, once 240 and once -200: a thread's first
// pages, or its last. So the second of the four workers decides: a leak would be in all.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int64_t kMaxGrowthInUse = int64_t{1} << 40;  // They keep freed memory on purpose.
constexpr int64_t kMaxGrowthOfWorker = int64_t{1} << 40;
#else
constexpr int64_t kMaxGrowthInUse = 256 << 10;
constexpr int64_t kMaxGrowthOfWorker = 150 << 10;
#endif

struct Outcomes {
  std::atomic<int> finished = 0, cancelled = 0, refused = 0;
};

// Mixed lengths; a quarter is cancelled somewhere; some can never fit, and must be refused at once.
void RunOneOfMany(const Client& client, int i, Outcomes* outcomes) {
  Prng prng(static_cast<uint64_t>(i));
  const int prompt = i % 50 == 49 ? 5000 : 1 + static_cast<int>(prng.Below(150));
  const int tokens = 1 + static_cast<int>(prng.Below(40));
  const int cancel_after = prng.Chance(25) ? static_cast<int>(prng.Below(20)) : -1;
  const Stream stream =
      RunStream(client, MakeRequest(prng.Next(), prompt, tokens), nullptr, cancel_after);
  if (stream.status.ok()) {
    EXPECT_EQ(stream.tokens.size(), static_cast<size_t>(tokens));
    ++outcomes->finished;
  } else if (absl::IsCancelled(stream.status)) {
    EXPECT_GE(cancel_after, 0);
    ++outcomes->cancelled;
  } else {
    EXPECT_TRUE(absl::IsOutOfRange(stream.status)) << stream.status;
    EXPECT_EQ(prompt, 5000) << stream.status;
    ++outcomes->refused;
  }
}

// What this process, which is the coordinator and its clients, has allocated and not freed.
// Resident memory would say less: gRPC's threads come and go, and their arenas and stacks stay
// behind.
int64_t BytesInUse() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

// Memory that a process shares with nobody and no file holds; 0 if it is gone.
int64_t AnonymousBytes(pid_t pid) {
  std::ifstream rollup("/proc/" + std::to_string(pid) + "/smaps_rollup");
  for (std::string word; rollup >> word;) {
    int64_t kib = 0;
    if (word == "Anonymous:" && rollup >> kib) return kib * 1024;
  }
  return 0;
}

// [0]: in use here; then resident in each worker.
std::vector<int64_t> MemoryOf(const LocalFleet& fleet) {
  std::vector<int64_t> bytes = {BytesInUse()};
  for (int i = 0; i < 4; ++i) bytes.push_back(AnonymousBytes(fleet.WorkerPid(i)));
  return bytes;
}

TEST_F(FleetTest, ACacheThatIsTooSmallLosesNobodyAndLeavesNothing) {
  // 200 streams of up to 190 tokens want some 20,000 positions; four workers have 4 x 1,024.
  const std::unique_ptr<LocalFleet> fleet = StartFleet(4, 1024);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  const auto is_empty = [](const FleetStatus& status) { return UsedBlocks(status) == 0; };
  std::array<std::vector<int64_t>, kRounds> memory;

  for (int round = 0; round < kRounds; ++round) {
    Outcomes outcomes;
    std::vector<std::thread> threads;
    for (int i = 0; i < kManyStreams; ++i) {
      threads.emplace_back([&, i] { RunOneOfMany(client, i, &outcomes); });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(outcomes.finished + outcomes.cancelled + outcomes.refused, kManyStreams);
    EXPECT_EQ(outcomes.refused, kManyStreams / 50);
    EXPECT_TRUE(AwaitStatus(fleet.get(), is_empty, absl::Now() + kPatience))
        << UsedBlocks(fleet->Status());
    std::vector<int64_t>& now = memory[static_cast<size_t>(round)];
    now = MemoryOf(*fleet);
    std::printf("round %d: %d finished, %d cancelled, %d refused; %ld kB in use, workers",
                round + 1,
                outcomes.finished.load(),
                outcomes.cancelled.load(),
                outcomes.refused.load(),
                static_cast<long>(now[0] >> 10));
    for (size_t i = 1; i < now.size(); ++i) std::printf(" %ld", static_cast<long>(now[i] >> 10));
    std::printf(" kB\n");
  }

  EXPECT_GT(fleet->Status().preemptions, 0);
  const auto growth = [&](size_t i) { return memory[kRounds - 1][i] - memory[1][i]; };
  EXPECT_LE(growth(0), kMaxGrowthInUse) << "from the second to the fifth round";
  std::array<int64_t, 4> of_workers = {growth(1), growth(2), growth(3), growth(4)};
  std::sort(of_workers.begin(), of_workers.end());
  EXPECT_LE(of_workers[1], kMaxGrowthOfWorker) << "of three workers, from the second to the fifth";
}

TEST_F(FleetTest, TooFewWorkersMeansWaitingForOneToComeBack) {
  const std::unique_ptr<LocalFleet> fleet = StartFleet(1, 4096);
  ASSERT_NE(fleet, nullptr);
  const Client client(fleet->address());
  const v1::GenerateRequest request = MakeRequest(3, 20, 200);
  const Stream undisturbed = RunStream(client, request, nullptr);
  Progress progress;
  std::thread killer([&] {
    EXPECT_TRUE(progress.AwaitTokens(10, absl::Now() + kPatience));
    EXPECT_TRUE(fleet->KillWorker(0));
  });

  const Stream stream = RunStream(client, request, &progress);
  killer.join();

  EXPECT_TRUE(stream.status.ok()) << stream.status;
  EXPECT_EQ(stream.tokens, undisturbed.tokens);
}

}  // namespace
}  // namespace shoal
