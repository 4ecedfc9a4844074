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

}  // namespace
}  // namespace shoal
