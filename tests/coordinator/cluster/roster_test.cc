#include "coordinator/cluster/roster.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const absl::Time kStart = absl::UnixEpoch();

Enrol MakeEnrol(uint32_t id, uint64_t incarnation = 1) {
  return {.worker = WorkerId{id},
          .incarnation = Incarnation{incarnation},
          .numerics = {.version = "0.1", .checkpoint_digest = "aa", .backend = "cpu"},
          .host = "alpha",
          .process = "pid 7",
          .num_experts = 32,
          .num_layers = 24};
}

TEST(RosterTest, ASecondWorkerWithTheSameIdentityIsRefusedByName) {
  Roster roster(32, 24);
  ASSERT_TRUE(roster.Add(kStart, MakeEnrol(3, 1)).ok());

  const absl::Status status = roster.Add(kStart, MakeEnrol(3, 2));

  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(status.message(), "worker id 3 is in use by pid 7 on alpha; give this one another id");
  roster.Remove(WorkerId{3});
  EXPECT_TRUE(roster.Add(kStart, MakeEnrol(3, 2)).ok());
}

TEST(RosterTest, AnotherNumericsClassIsRefusedWithBothValues) {
  struct Case {
    const char* name;
    NumericsClass numerics;
  };

  const Case cases[] = {
      {"checkpoint", {.version = "0.1", .checkpoint_digest = "bb", .backend = "cpu"}},
      {"backend", {.version = "0.1", .checkpoint_digest = "aa", .backend = "cuda"}},
      {"version", {.version = "0.2", .checkpoint_digest = "aa", .backend = "cpu"}},
      {"numerics",
       {.version = "0.1", .checkpoint_digest = "aa", .backend = "cpu", .numerics_version = 1}},
  };
  for (const Case& c : cases) {
    Roster roster(32, 24);
    ASSERT_TRUE(roster.Add(kStart, MakeEnrol(1)).ok());
    Enrol other = MakeEnrol(2);
    other.numerics = c.numerics;

    const absl::Status status = roster.Add(kStart, other);

    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << c.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(Describe(c.numerics))) << c.name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(Describe(MakeEnrol(1).numerics)))
        << c.name;
  }
}

TEST(RosterTest, AnotherGeometryIsRefused) {
  Roster roster(128, 24);
  const absl::Status status = roster.Add(kStart, MakeEnrol(1));
  EXPECT_EQ(status.message(), "the worker's checkpoint has 32 experts, the coordinator's has 128");
}

TEST(RosterTest, SilenceIsMeasuredFromTheLastWord) {
  Roster roster(32, 24);
  ASSERT_TRUE(roster.Add(kStart, MakeEnrol(1)).ok());
  ASSERT_TRUE(roster.Add(kStart + absl::Seconds(3), MakeEnrol(2)).ok());

  EXPECT_THAT(roster.SilentSince(kStart + absl::Seconds(1)), ElementsAre(WorkerId{1}));
  roster.At(WorkerId{1}).last_heard = kStart + absl::Seconds(4);
  EXPECT_TRUE(roster.SilentSince(kStart + absl::Seconds(1)).empty());
  EXPECT_EQ(roster.OldestWord(), kStart + absl::Seconds(3));
}

TEST(RosterTest, FindsOnlyThePresentIncarnation) {
  Roster roster(32, 24);
  ASSERT_TRUE(roster.Add(kStart, MakeEnrol(1, 5)).ok());
  EXPECT_NE(roster.Find(WorkerId{1}, Incarnation{5}), nullptr);
  EXPECT_EQ(roster.Find(WorkerId{1}, Incarnation{4}), nullptr);
  EXPECT_EQ(roster.Find(WorkerId{2}, Incarnation{5}), nullptr);
}

TEST(RosterTest, SomeMemoryIsLeftForTheCache) {
  Enrol enrol = MakeEnrol(1);
  enrol.memory_bytes = 1'000 + 160;
  enrol.dense_bytes = 1'000;
  enrol.expert_bytes = 10;
  Roster roster(32, 24);
  ASSERT_TRUE(roster.Add(kStart, enrol).ok());
  EXPECT_EQ(roster.At(WorkerId{1}).max_experts, 15);  // 16 would fill it
}

TEST(RosterTest, AnEmptyFleetMayBecomeAnother) {
  Roster roster(32, 24);
  Enrol other = MakeEnrol(2);
  other.numerics.version = "0.2";
  ASSERT_TRUE(roster.Add(kStart, MakeEnrol(1)).ok());
  roster.Remove(WorkerId{1});
  EXPECT_FALSE(roster.Add(kStart, other).ok());  // Streams may wait for the old class
  roster.ForgetNumerics();
  EXPECT_TRUE(roster.Add(kStart, other).ok());
}

}  // namespace
}  // namespace shoal
