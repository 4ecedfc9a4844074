#include "worker/exchange/nccl_endpoint.h"

#include <cstdlib>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

using testing::HasSubstr;

std::vector<Member> Members(const std::vector<std::string>& endpoints) {
  std::vector<Member> members;
  for (const std::string& endpoint : endpoints) {
    const auto id = static_cast<uint32_t>(10 + members.size());
    members.push_back({.worker = WorkerId{id}, .exchange_endpoint = endpoint});
  }
  return members;
}

std::string Endpoint(const std::string& version, const std::string& host, const std::string& gpu) {
  return FormatNcclEndpoint({.version = version, .host = host, .device = gpu});
}

TEST(NcclEndpointTest, SurvivesItsText) {
  const NcclEndpoint endpoint{.version = "2.28.9", .host = "a/5d0c", .device = "GPU-8b1f"};
  EXPECT_EQ(FormatNcclEndpoint(endpoint), "nccl:2.28.9;host=a/5d0c;device=GPU-8b1f");
  EXPECT_EQ(*ParseNcclEndpoint(FormatNcclEndpoint(endpoint)), endpoint);
  const NcclEndpoint odd{.version = "2.28.9", .host = "a;device=b\n", .device = ""};
  EXPECT_EQ(ParseNcclEndpoint(FormatNcclEndpoint(odd))->host, "a_device_b_");
  for (const char* text : {"", "nccl:", "unix:/a", "nccl:2.28.9;host=a", "nccl:1;device=;host="}) {
    EXPECT_EQ(ParseNcclEndpoint(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(NcclEndpointTest, TheHostIdIsTheOneThatNcclWillUse) {
  unsetenv("NCCL_HOSTID");
  const std::string own = NcclHostId();
  EXPECT_THAT(own, HasSubstr("/"));
  EXPECT_EQ(own, NcclHostId());
  setenv("NCCL_HOSTID", "fakehost-1", 1);
  EXPECT_EQ(NcclHostId(), "fakehost-1");
  unsetenv("NCCL_HOSTID");
}

struct Case {
  const char* name;
  std::vector<std::string> endpoints;
  const char* message;
  std::vector<Rank> suspects;
};

class NcclPeersTest : public testing::TestWithParam<Case> {};

TEST_P(NcclPeersTest, AreRefusedByName) {
  const absl::Status status = CheckNcclPeers(Members(GetParam().endpoints));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_EQ(SuspectsOf(status), GetParam().suspects);
}

INSTANTIATE_TEST_SUITE_P(
    Faults,
    NcclPeersTest,
    testing::Values(
        Case{"AnotherVersion",
             {Endpoint("2.28.9", "a", "0"),
              Endpoint("2.29.7", "b", "0"),
              Endpoint("2.28.9", "c", "0")},
             "rank 0 (worker 10) has 2.28.9, rank 1 (worker 11) has 2.29.7",
             {Rank{1}}},
        Case{"TheFirstIsTheOddOne",
             {Endpoint("2.29.7", "a", "0"),
              Endpoint("2.28.9", "b", "0"),
              Endpoint("2.28.9", "c", "0")},
             "rank 1 (worker 11) has 2.28.9, rank 0 (worker 10) has 2.29.7",
             {Rank{0}}},
        Case{"OneDeviceTwice",
             {Endpoint("2.28.9", "a", "GPU-1"), Endpoint("2.28.9", "a", "GPU-1")},
             "rank 0 (worker 10) and rank 1 (worker 11) are both on device GPU-1 of host a",
             {Rank{1}}},
        Case{"AnotherKind",
             {Endpoint("2.28.9", "a", "0"), "tcp:10.0.0.2:8472"},
             "rank 1 (worker 11) exchanges over tcp:10.0.0.2:8472",
             {Rank{1}}}),
    [](const auto& param) { return param.param.name; });

TEST(NcclEndpointTest, HostsOfTheirOwnMakeOneDeviceTwo) {
  EXPECT_TRUE(CheckNcclPeers(Members({Endpoint("2.28.9", "fakehost-0", "GPU-1"),
                                      Endpoint("2.28.9", "fakehost-1", "GPU-1"),
                                      Endpoint("2.28.9", "fakehost-0", "GPU-2")}))
                  .ok());
  // Host memory is not a device that could be taken twice.
  EXPECT_TRUE(
      CheckNcclPeers(Members({Endpoint("2.28.9", "a", ""), Endpoint("2.28.9", "a", "")})).ok());
}

}  // namespace
}  // namespace shoal
