// The service as a program sees it that shares nothing with us but the .proto files.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/prng.h"
#include "coordinator/serve/server.h"
#include "tests/coordinator/serve/fake_worker.h"
#include "tests/coordinator/serve/small_model.h"

namespace shoal {
namespace {

// The interpreter with grpcio; empty: there is none on this machine.
std::string Python() {
  const char* const places[] = {std::getenv("SHOAL_VENV"), SHOAL_SOURCE_DIR "/.venv", "/opt/venv"};
  for (const char* venv : places) {
    if (venv == nullptr) continue;
    const std::string python = absl::StrCat(venv, "/bin/python");
    if (std::system(absl::StrCat(python, " -c 'import grpc_tools' 2>/dev/null").c_str()) == 0) {
      return python;
    }
  }
  return "";
}

TEST(PythonClientTest, AGeneratedClientStreamsAndContinuesAnAnswer) {
  const std::string python = Python();
  if (python.empty()) GTEST_SKIP() << "no Python with grpcio-tools; tests/run.sh installs one";
  const testing_model::AlphabetTokenizer tokenizer;
  CoordinatorServerOptions options;
  options.config = testing_model::SmallConfig();
  options.model_name = "small";
  options.tokenizer = &tokenizer;
  options.coordinator.num_experts = options.config.num_experts;
  options.coordinator.num_layers = options.config.num_layers;
  options.coordinator.max_positions = options.config.max_positions;
  options.coordinator.sliding_window = options.config.sliding_window;
  const auto server = CoordinatorServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = absl::StrCat("127.0.0.1:", (*server)->port());
  // Halves of characters included, so that text is held back where the stream is broken off.
  const FakeWorker worker({.address = address, .next = [](const KeepRecord& record, int32_t index) {
                             const uint64_t key =
                                 record.sampling.seed + static_cast<uint64_t>(index);
                             return TokenId{static_cast<int32_t>(Mix64(key) % 28)};
                           }});
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!(*server)->Status().is_ready) ASSERT_LT(absl::Now(), deadline);

  const std::string command = absl::StrCat(python,
                                           " ",
                                           SHOAL_SOURCE_DIR,
                                           "/tests/e2e/python_client.py ",
                                           address,
                                           " --prompt hello 2>&1");
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) {
    output.push_back(static_cast<char>(c));
  }

  EXPECT_EQ(pclose(pipe), 0) << output;
  EXPECT_THAT(output, testing::HasSubstr("\"finish_reason\": \"LENGTH\""));
}

}  // namespace
}  // namespace shoal
