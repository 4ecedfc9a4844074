// Feeds every file of a fuzzer's corpus to it once. What a fuzzer found stays found.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "gtest/gtest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace shoal {
namespace {

TEST(FuzzTest, ReplaysItsCorpus) {
  std::set<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(SHOAL_FUZZ_CORPUS)) {
    paths.insert(entry.path());
  }
  ASSERT_FALSE(paths.empty()) << SHOAL_FUZZ_CORPUS;
  for (const std::filesystem::path& path : paths) {
    SCOPED_TRACE(path.string());
    std::ifstream file(path, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
}

}  // namespace
}  // namespace shoal
