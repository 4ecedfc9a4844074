// What NCCL will use, by its rules, on hosts of all kinds; and the command itself on this one.
#include <cstdio>
#include <map>
#include <string>

#include "cli/nccl_network.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

NetworkInterface Up(const std::string& name) {
  return {.name = name, .address = "10.0.0.1", .is_ipv6 = false, .is_up = true};
}

NcclNetwork Choose(std::vector<NetworkInterface> interfaces,
                   std::map<std::string, std::string> environment,
                   std::vector<std::string> infiniband = {}) {
  return ChooseNcclNetwork(
      {.interfaces = std::move(interfaces),
       .infiniband_devices = std::move(infiniband),
       .environment = [environment = std::move(environment)](
                          const std::string& name) -> std::optional<std::string> {
         const auto found = environment.find(name);
         if (found == environment.end()) return std::nullopt;
         return found->second;
       }});
}

TEST(NcclNetworkTest, TakesWhatIsNeitherDockerNorLoopback) {
  const NcclNetwork network = Choose({Up("lo"), Up("docker0"), Up("eth0")}, {});
  ASSERT_THAT(network.sockets, SizeIs(1));
  EXPECT_EQ(network.sockets[0].name, "eth0");
  EXPECT_THAT(network.problems, IsEmpty());
  EXPECT_THAT(network.why_rows, HasSubstr("no device"));
}

TEST(NcclNetworkTest, InterfacesNamedIbComeFirst) {
  EXPECT_EQ(Choose({Up("eth0"), Up("ib0")}, {}).sockets.front().name, "ib0");
}

TEST(NcclNetworkTest, LoopbackIsTheLastResortAndAProblem) {
  const NcclNetwork network = Choose({Up("lo")}, {});
  EXPECT_EQ(network.sockets.front().name, "lo");
  ASSERT_THAT(network.problems, SizeIs(1));
  EXPECT_THAT(network.problems[0], HasSubstr("only lo is up"));
}

TEST(NcclNetworkTest, ANameThatFitsNothingIsAnsweredWithTheOnesThereAre) {
  for (const char* names : {"eth7", "=eth", "^eth,lo"}) {
    const NcclNetwork network =
        Choose({Up("lo"), Up("eth0"), Up("eth0")}, {{"NCCL_SOCKET_IFNAME", names}});
    ASSERT_THAT(network.problems, SizeIs(1)) << names;
    EXPECT_EQ(network.problems[0],
              std::string("NCCL_SOCKET_IFNAME=") + names +
                  " fits no interface of this host that is up; there are: lo, eth0");
  }
}

TEST(NcclNetworkTest, PrefixesWholeNamesAndExclusionsAreNccls) {
  const std::vector<NetworkInterface> all = {Up("eth0"), Up("eth1"), Up("lo")};
  const auto count = [&](const char* names) {
    return Choose(all, {{"NCCL_SOCKET_IFNAME", names}}).sockets.size();
  };
  EXPECT_EQ(count("eth"), 2u);
  EXPECT_EQ(count("=eth1"), 1u);
  EXPECT_EQ(count("^lo"), 2u);
  EXPECT_EQ(count("^=eth0"), 2u);
  EXPECT_EQ(count("eth1,lo"), 2u);
}

TEST(NcclNetworkTest, DownInterfacesAndTheOtherFamilyAreNotTaken) {
  NetworkInterface down = Up("eth0");
  down.is_up = false;
  NetworkInterface six = Up("eth1");
  six.is_ipv6 = true;
  EXPECT_EQ(Choose({down, six}, {}).sockets.front().name, "eth1");
  EXPECT_THAT(Choose({down, six}, {{"NCCL_SOCKET_FAMILY", "AF_INET"}}).problems, SizeIs(1));
}

TEST(NcclNetworkTest, InfinibandCarriesRowsUnlessForbidden) {
  EXPECT_TRUE(Choose({Up("eth0")}, {}, {"mlx5_0"}).uses_infiniband);
  EXPECT_THAT(Choose({Up("eth0")}, {}, {"mlx5_0"}).why_rows, HasSubstr("mlx5_0"));
  EXPECT_FALSE(Choose({Up("eth0")}, {{"NCCL_IB_DISABLE", "1"}}, {"mlx5_0"}).uses_infiniband);
  EXPECT_FALSE(Choose({Up("eth0")}, {{"NCCL_NET", "Socket"}}, {"mlx5_0"}).uses_infiniband);
  EXPECT_THAT(Choose({Up("eth0")}, {{"NCCL_NET", "IB"}}).problems, SizeIs(1));
}

TEST(NcclNetworkTest, ThisHostHasAnInterface) {
  EXPECT_FALSE(ListInterfaces().empty());
}

// Runs the program; its exit code and what it printed.
std::pair<int, std::string> RunDoctorHere(const std::string& environment,
                                          const std::string& arguments) {
  const std::string command =
      environment + " " SHOAL_BINARY_DIR "/cli/shoal doctor " + arguments + " 2>&1";
  std::FILE* const pipe = popen(command.c_str(), "r");
  std::string text;
  char chunk[256];
  while (std::fgets(chunk, sizeof(chunk), pipe) != nullptr) text += chunk;
  return {WEXITSTATUS(pclose(pipe)), text};
}

TEST(DoctorTest, NamesTheInterfacesWhenTheOneAskedForDoesNotExist) {
  const auto [code, text] = RunDoctorHere("NCCL_SOCKET_IFNAME=eth77", "");
  EXPECT_EQ(code, 1);
  EXPECT_THAT(text, HasSubstr("wrong: NCCL_SOCKET_IFNAME=eth77 fits no interface"));
  EXPECT_THAT(text, HasSubstr(ListInterfaces().front().name));
}

TEST(DoctorTest, NamesTheLibraryAndItsVersion) {
  const auto [code, text] = RunDoctorHere(
      "", "--nccl-library " SHOAL_BINARY_DIR "/tests/worker/fake_nccl/libfake_nccl.so");
  EXPECT_THAT(text, HasSubstr("version 2.28.9, a scripted one for host memory"));
  const auto [missing_code, missing] = RunDoctorHere("", "--nccl-library /nowhere.so");
  EXPECT_EQ(missing_code, 1);
  EXPECT_THAT(missing, HasSubstr("wrong: no NCCL library"));
}

}  // namespace
}  // namespace shoal
