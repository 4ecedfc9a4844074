// How the library is found and what is accepted; and, where it is installed, the real one: without
// a GPU it can tell its version, draw unique ids and name its errors.
#include "worker/exchange/nccl_api.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "worker/exchange/factory.h"

namespace shoal {
namespace {

using testing::HasSubstr;

constexpr char kFake[] = SHOAL_BINARY_DIR "/tests/worker/fake_nccl/libfake_nccl.so";

// A copy is a library of its own, with a script of its own.
absl::StatusOr<NcclApi> LoadFake(const std::string& name, const std::string& script) {
  const std::string path = testing::TempDir() + "/" + name + ".so";
  std::filesystem::copy_file(kFake, path, std::filesystem::copy_options::overwrite_existing);
  setenv("FAKE_NCCL", script.c_str(), 1);
  absl::StatusOr<NcclApi> api = LoadNccl(path);
  unsetenv("FAKE_NCCL");
  return api;
}

TEST(NcclApiTest, VersionsHaveTwoSpellings) {
  EXPECT_EQ(NcclVersionText(22809), "2.28.9");
  EXPECT_EQ(NcclVersionText(2804), "2.8.4");
  EXPECT_EQ(NcclMajor(22809), 2);
  EXPECT_EQ(NcclMajor(2804), 2);
  EXPECT_EQ(NcclMajor(30001), 3);
}

TEST(NcclApiTest, OlderAndOtherVersionsAreRefusedByNumber) {
  EXPECT_TRUE(CheckNcclVersion(22809, "l").ok());
  EXPECT_TRUE(CheckNcclVersion(23007, "l").ok());
  for (const int version : {2804, 22005, 22808, 30000}) {
    const absl::Status status = CheckNcclVersion(version, "/x/libnccl.so.2");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(status.message(),
              "/x/libnccl.so.2 is NCCL " + NcclVersionText(version) +
                  "; accepted are 2.28.9 and later versions of 2.x");
  }
}

TEST(NcclApiTest, LoadsALibraryByItsPath) {
  const absl::StatusOr<NcclApi> api = LoadFake("plain", "");
  ASSERT_TRUE(api.ok()) << api.status();
  EXPECT_EQ(api->version, kNcclVersion);
  EXPECT_EQ(api->path, testing::TempDir() + "/plain.so");
  EXPECT_TRUE(api->is_on_host);
}

TEST(NcclApiTest, TheEnvironmentNamesALibrary) {
  setenv("SHOAL_NCCL_LIBRARY", kFake, 1);
  const absl::StatusOr<NcclApi> api = LoadNccl("");
  unsetenv("SHOAL_NCCL_LIBRARY");
  ASSERT_TRUE(api.ok()) << api.status();
  EXPECT_EQ(api->path, kFake);
}

TEST(NcclApiTest, WrongLibrariesAreNamedWithWhatWouldDo) {
  const absl::Status missing = LoadNccl("/nowhere/libnccl.so.2").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/nowhere/libnccl.so.2"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("2.28.9 or later"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("SHOAL_NCCL_LIBRARY"));

  const absl::Status another = LoadNccl("libm.so.6").status();
  EXPECT_EQ(another.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(another.message()), HasSubstr("libm.so.6 has no ncclGetVersion"));

  for (const char* version : {"22005", "30001"}) {
    const absl::Status status = LoadFake(version, std::string("version=") + version).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("accepted are 2.28.9"));
  }
}

TEST(NcclApiTest, ResultsBecomeStatuses) {
  const NcclApi api = *LoadFake("results", "");
  EXPECT_TRUE(NcclStatus(api, NcclResult::kSuccess, "x").ok());
  EXPECT_TRUE(NcclStatus(api, NcclResult::kInProgress, "x").ok());
  EXPECT_EQ(NcclStatus(api, NcclResult::kRemoteError, "dispatch"),
            absl::UnavailableError("dispatch: remote process exited or there was a network error"));
  EXPECT_EQ(NcclStatus(api, NcclResult::kInvalidUsage, "x").code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(NcclStatus(api, NcclResult::kInvalidArgument, "x").code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(NcclStatus(api, NcclResult::kUnhandledCudaError, "x").code(),
            absl::StatusCode::kUnavailable);
}

class RealNcclTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<NcclApi> api = LoadNccl("");
    if (!api.ok()) {
      std::fprintf(
          stderr, "SKIPPED, no real NCCL: %s\n", std::string(api.status().message()).c_str());
      GTEST_SKIP() << api.status();
    }
    api_ = *std::move(api);
    std::printf("%s: NCCL %s\n", api_.path.c_str(), NcclVersionText(api_.version).c_str());
  }

  NcclApi api_;
};

TEST_F(RealNcclTest, TellsItsVersionAndNeedsADevice) {
  EXPECT_GE(api_.version, kNcclVersion);
  EXPECT_FALSE(api_.is_on_host);
}

TEST_F(RealNcclTest, DrawsUniqueIdsWithoutADevice) {
  NcclUniqueId first{};
  NcclUniqueId second{};
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  ASSERT_EQ(api_.get_unique_id(&first), NcclResult::kSuccess) << api_.get_last_error(nullptr);
  ASSERT_EQ(api_.get_unique_id(&second), NcclResult::kSuccess);
  EXPECT_NE(std::memcmp(first.bytes, second.bytes, sizeof(first.bytes)), 0);
}

TEST_F(RealNcclTest, NamesEveryError) {
  for (int result = 0; result <= 7; ++result) {
    const std::string text = api_.get_error_string(static_cast<NcclResult>(result));
    EXPECT_FALSE(text.empty());
    EXPECT_THAT(text, testing::Not(HasSubstr("unknown"))) << result;
  }
  EXPECT_THAT(std::string(api_.get_error_string(static_cast<NcclResult>(99))),
              HasSubstr("unknown"));
}

TEST(NcclFactoryTest, TheLibraryMayBeNamedOrThatOfThisHost) {
  ASSERT_TRUE(MakeExchangeFactory(absl::StrCat("nccl:", kFake), {}).ok());
  setenv("SHOAL_NCCL_LIBRARY", kFake, 1);
  for (const char* const exchange : {"nccl", "nccl:"}) {
    const auto factory = MakeExchangeFactory(exchange, {});
    ASSERT_TRUE(factory.ok()) << factory.status();
    EXPECT_THAT((*factory)->endpoint(), HasSubstr("nccl:2.28.9;"));
  }
  unsetenv("SHOAL_NCCL_LIBRARY");
  EXPECT_FALSE(MakeExchangeFactory("ncclx", {}).ok());
}

// Host memory is nothing that it could exchange: said before a worker enrols.
TEST_F(RealNcclTest, IsRefusedForAWorkerWithoutAGpu) {
  const absl::Status status = MakeExchangeFactory("nccl:", {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("this worker computes on the CPU"));
}

}  // namespace
}  // namespace shoal
