// MakeBackends: the words of --backend, and what a machine without a GPU answers.
#include "worker/serve/backends.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using testing::HasSubstr;

std::string ErrorOf(const std::string& backend, absl::StatusCode code) {
  const absl::StatusOr<Backends> backends = MakeBackends({.backend = backend});
  EXPECT_FALSE(backends.ok()) << backend;
  EXPECT_EQ(backends.status().code(), code) << backends.status();
  return std::string(backends.status().message());
}

TEST(MakeBackendsTest, TheCpuNeedsNothing) {
  const absl::StatusOr<Backends> backends = MakeBackends({.backend = "cpu"});

  ASSERT_TRUE(backends.ok()) << backends.status();
  EXPECT_EQ(backends->gpu, nullptr);
  EXPECT_EQ(backends->stepping->numerics_class(), "cpu");
}

TEST(MakeBackendsTest, UnknownWordsAreRefusedWithThoseThatAreKnown) {
  for (const std::string backend : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cuda:0:1", ""}) {
    const std::string error = ErrorOf(backend, absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(error, HasSubstr("\"" + backend + "\""));
    EXPECT_THAT(error, HasSubstr("cuda:INDEX"));
  }
}

// Where there is a GPU, one that does not exist is asked for; elsewhere the binary or the driver is
// missing. Each sentence says what would do.
TEST(MakeBackendsTest, AGpuThatIsNotThereIsAnErrorForPeople) {
  const std::string error = ErrorOf("cuda:99", absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(error,
              testing::AnyOf(HasSubstr("built without CUDA"),
                             HasSubstr("no NVIDIA driver on this machine"),
                             HasSubstr("shows no GPU"),
                             HasSubstr("GPU 99 does not exist")));
}

TEST(MakeBackendsTest, CpusMustBeOneForEachThread) {
  const absl::StatusOr<Backends> backends = MakeBackends({.threads = 2, .cpus = {0}});
  EXPECT_EQ(backends.status().code(), absl::StatusCode::kInvalidArgument);
}

constexpr int64_t kGigabyte = 1'000'000'000;

TEST(UsableGpuBytesTest, LeavesATenthOfASmallGpuAndFourGibibytesOfALargeOne) {
  EXPECT_EQ(*UsableGpuBytes(20 * kGigabyte, 4 * kGigabyte), 18 * kGigabyte);
  EXPECT_EQ(*UsableGpuBytes(141 * kGigabyte, 4 * kGigabyte), 141 * kGigabyte - (int64_t{4} << 30));
}

TEST(UsableGpuBytesTest, DenseWeightsThatLeaveNoRoomAreAnErrorWithTheNumbers) {
  const absl::StatusOr<int64_t> usable = UsableGpuBytes(4 * kGigabyte, 4'260'000'000);
  EXPECT_EQ(usable.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(usable.status().message()),
      testing::AllOf(HasSubstr("4260000000 bytes"), HasSubstr("3600000000 of 4000000000 free")));
}

}  // namespace
}  // namespace shoal
