// A folder of its own for one test, gone with everything in it at the end.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "gtest/gtest.h"

#include "base/check.h"

namespace shoal {

class TempFolder {
 public:
  TempFolder() {
    std::string path = ::testing::TempDir() + "/shoal_XXXXXX";
    CHECK(mkdtemp(path.data()) != nullptr);
    path_ = path;
  }

  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  ~TempFolder() {
    std::error_code ignored;  // Leaving a temporary folder behind fails no test.
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace shoal
