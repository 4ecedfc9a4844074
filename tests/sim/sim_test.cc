#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "gtest/gtest.h"

#include "tests/sim/simulator.h"

namespace shoal::sim {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// Shifts the range, for a night's run of other seeds.
uint64_t FirstSeed() {
  return FromEnvironment("SHOAL_SEED", 1);
}

// Fewer under sanitizers, which are thirty times slower.
uint64_t NumSeeds() {
  return FromEnvironment("SHOAL_SIM_SEEDS", 1000);
}

// A failed CHECK of the core ends the process: the seed must be known then too.
char current_seed[64];

void PrintSeed(int) {
  const ssize_t written = write(STDERR_FILENO, current_seed, std::strlen(current_seed));
  static_cast<void>(written);
  std::signal(SIGABRT, SIG_DFL);
}

RunReport RunLoudly(const RunOptions& options) {
  std::snprintf(current_seed,
                sizeof(current_seed),
                "the simulation's seed: %llu\n",
                static_cast<unsigned long long>(options.seed));
  std::signal(SIGABRT, PrintSeed);
  return RunSeed(options);
}

TEST(SimTest, ManyFleetsLoseNothing) {
  RunReport total;
  int64_t virtual_us = 0;
  for (uint64_t seed = FirstSeed(); seed < FirstSeed() + NumSeeds(); ++seed) {
    const RunReport report = RunLoudly({.seed = seed});

    ASSERT_FALSE(report.violation.has_value()) << "seed " << seed << ": " << *report.violation;
    total.num_output_tokens += report.num_output_tokens;
    total.num_epochs += report.num_epochs;
    total.num_preemptions += report.num_preemptions;
    total.num_cached_tokens += report.num_cached_tokens;
    virtual_us += report.virtual_us;
  }
  const int64_t num_seeds = static_cast<int64_t>(NumSeeds());
  std::printf(
      "%lld seeds, %lld s of virtual time: %lld tokens, %lld epochs, %lld preemptions, "
      "%lld cached tokens\n",
      static_cast<long long>(num_seeds),
      static_cast<long long>(virtual_us / 1'000'000),
      static_cast<long long>(total.num_output_tokens),
      static_cast<long long>(total.num_epochs),
      static_cast<long long>(total.num_preemptions),
      static_cast<long long>(total.num_cached_tokens));
  // The trouble really happened: a third of what is usual.
  EXPECT_GT(total.num_output_tokens, 100 * num_seeds);
  EXPECT_GT(total.num_epochs, 2 * num_seeds);
  EXPECT_GT(total.num_preemptions, 2 * num_seeds);
  EXPECT_GT(total.num_cached_tokens, 50 * num_seeds);
}

TEST(SimTest, TheSameSeedIsTheSameRun) {
  std::map<uint64_t, uint64_t> seen;
  for (uint64_t seed = FirstSeed(); seed < FirstSeed() + 50; ++seed) {
    const RunReport first = RunLoudly({.seed = seed});
    const RunReport second = RunLoudly({.seed = seed});

    EXPECT_EQ(first.fingerprint, second.fingerprint) << "seed " << seed;
    EXPECT_TRUE(seen.emplace(first.fingerprint, seed).second) << "seed " << seed;
  }
}

struct Planted {
  const char* name;
  PlantedBug bug;
  bool is_fenced;
};

class PlantedBugTest : public testing::TestWithParam<Planted> {};

// A checker that never speaks proves nothing: each of these mistakes is found, and soon.
TEST_P(PlantedBugTest, IsFound) {
  constexpr uint64_t kSeeds = 500;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const RunReport report =
        RunLoudly({.seed = seed, .bug = GetParam().bug, .is_fenced = GetParam().is_fenced});
    if (!report.violation.has_value()) continue;
    std::printf("%s: found by seed %llu: %s\n",
                GetParam().name,
                static_cast<unsigned long long>(seed),
                report.violation->c_str());
    return;
  }
  FAIL() << GetParam().name << " was not found by " << kSeeds << " seeds";
}

INSTANTIATE_TEST_SUITE_P(All,
                         PlantedBugTest,
                         testing::Values(Planted{"NoFence", PlantedBug::kNone, false},
                                         Planted{"FreeInFlight", PlantedBug::kFreeInFlight, true},
                                         Planted{"SlideAhead", PlantedBug::kSlideAhead, true},
                                         Planted{"PublishAhead", PlantedBug::kPublishAhead, true},
                                         Planted{"KeepTables", PlantedBug::kKeepTables, true},
                                         Planted{"KeepMask", PlantedBug::kKeepMask, true}),
                         [](const testing::TestParamInfo<Planted>& param) {
                           return std::string(param.param.name);
                         });

}  // namespace
}  // namespace shoal::sim
