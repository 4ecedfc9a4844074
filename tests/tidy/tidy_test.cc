// The repository's rules about itself (docs/style.md section 8), executed: include rules, sizes,
// names, paths in the documents. Reads the tree like any other test; each failure names file and
// line.

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

using testing::IsEmpty;

struct File {
  std::string path;  // From the root
  std::vector<std::string> lines;
};

bool HasSuffix(const std::string& path, std::initializer_list<const char*> suffixes) {
  return std::any_of(
      suffixes.begin(), suffixes.end(), [&](const char* s) { return path.ends_with(s); });
}

bool IsCode(const std::string& path) {
  return HasSuffix(path, {".h", ".cc", ".cu", ".cuh"});
}

// Every file of the source tree that git would track, build products and dependencies excluded.
const std::vector<File>& Tree() {
  static const auto* const tree = [] {
    auto* files = new std::vector<File>;
    const fs::path root = SHOAL_SOURCE_DIR;
    for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator();
         ++it) {
      const std::string path = fs::relative(it->path(), root).generic_string();
      if (it->is_directory()) {
        const std::string name = it->path().filename().string();
        if (path == "build" || (name.starts_with(".") && name != ".ci") || name == "__pycache__") {
          it.disable_recursion_pending();
        }
        continue;
      }
      if (!HasSuffix(path, {".h", ".cc", ".cu", ".cuh", ".md", ".txt", ".proto", ".sh", ".py"})) {
        continue;
      }
      File file{path, {}};
      std::ifstream in(it->path());
      for (std::string line; std::getline(in, line);) file.lines.push_back(line);
      files->push_back(std::move(file));
    }
    std::sort(
        files->begin(), files->end(), [](const File& a, const File& b) { return a.path < b.path; });
    return files;
  }();
  return *tree;
}

bool Exists(const std::string& path) {
  return fs::exists(fs::path(SHOAL_SOURCE_DIR) / path);
}

std::string At(const File& file, size_t line) {
  return file.path + ":" + std::to_string(line + 1) + ": ";
}

// One row of docs/architecture.md section 8: files whose path begins with `from` may include, of
// our own files, only paths that begin with one of `ours`; and of the guarded libraries only
// `libraries`.
struct IncludeRule {
  std::string from;
  std::vector<std::string> ours;
  std::set<std::string> libraries;
};

// The first rule whose prefix matches a path is its rule.
const std::vector<IncludeRule>& IncludeRules() {
  static const auto* const rules = new std::vector<IncludeRule>{
      {"base/serve/", {"base/"}, {"threads", "spdlog", "openssl", "boost"}},
      {"base/", {"base/"}, {"threads"}},
      {"model/", {"base/", "model/", "kernels/synthetic.h"}, {"json"}},
      {"proto/wire", {"base/", "model/", "proto/"}, {"grpc"}},
      {"proto/", {"base/", "proto/"}, {}},
      {"kernels/cpu/thread_pool", {"kernels/"}, {"threads"}},
      {"kernels/cpu/ceiling", {"kernels/"}, {"threads"}},
      {"kernels/cpu/backend", {"kernels/"}, {"threads"}},  // Memory comes from mmap
      {"kernels/", {"kernels/"}, {}},
      {"coordinator/text/", {"base/", "proto/", "coordinator/text/"}, {"json"}},
      {"coordinator/api/", {"base/", "proto/", "coordinator/text/", "coordinator/api/"}, {"json"}},
      {"coordinator/serve/",
       {"base/", "model/", "proto/", "coordinator/"},
       {"grpc", "json", "threads", "openssl"}},
      {"coordinator/", {"base/", "model/", "proto/", "coordinator/"}, {}},
      {"worker/exchange/route",
       {"base/", "model/", "proto/", "worker/exchange/", "kernels/tensor.h"},
       {}},
      {"worker/exchange/cuda_stream", {"base/", "worker/exchange/", "kernels/"}, {"threads"}},
      {"worker/exchange/",
       {"base/",
        "model/",
        "proto/",
        "worker/exchange/",
        "kernels/route_math.h",
        "kernels/tensor.h"},
       {"threads", "openssl"}},
      {"worker/load/",
       {"base/",
        "model/",
        "worker/load/",
        "worker/weights.h",
        "kernels/backend.h",
        "kernels/synthetic.h",
        "kernels/tensor.h"},
       {"threads", "json", "openssl"}},
      {"worker/serve/", {"base/", "model/", "proto/", "worker/", "kernels/"}, {"grpc", "threads"}},
      {"worker/records", {"base/", "model/", "proto/", "worker/records.h"}, {}},
      {"worker/fence", {"base/", "model/", "proto/", "worker/fence.h"}, {}},
      {"worker/lowering",
       {"base/", "model/", "proto/", "worker/", "kernels/backend.h", "kernels/tensor.h"},
       {}},
      // These own the step thread and the loading thread of the process.
      {"worker/holdings",
       {"base/", "model/", "proto/", "worker/", "kernels/backend.h", "kernels/tensor.h"},
       {"threads"}},
      {"worker/worker.",
       {"base/", "model/", "proto/", "worker/", "kernels/backend.h", "kernels/tensor.h"},
       {"threads"}},
      {"worker/",
       {"base/", "model/", "proto/", "worker/", "kernels/backend.h", "kernels/tensor.h"},
       {}},
      {"cli/",
       {"base/", "model/", "proto/", "kernels/", "coordinator/", "worker/", "cli/"},
       {"grpc", "json", "threads", "cli11", "openssl"}},
      {"tests/",
       {"base/", "model/", "proto/", "kernels/", "coordinator/", "worker/", "cli/", "tests/"},
       {"grpc", "json", "threads", "cli11", "openssl", "spdlog", "boost"}},
  };
  return *rules;
}

// The guarded library an included header belongs to, or "".
std::string LibraryOf(const std::string& header) {
  static const auto* const patterns = new std::vector<std::pair<std::regex, std::string>>{
      {std::regex("^(grpc|grpcpp|google/protobuf)/.*|.*\\.(pb|grpc\\.pb)\\.h$"), "grpc"},
      {std::regex("^nlohmann/.*"), "json"},
      {std::regex("^CLI/.*"), "cli11"},
      {std::regex("^spdlog/.*"), "spdlog"},
      {std::regex("^openssl/.*"), "openssl"},
      {std::regex("^boost/.*"), "boost"},
      {std::regex("^(thread|mutex|condition_variable|future|fstream|filesystem|chrono)$"),
       "threads"},
      {std::regex("^absl/(synchronization|time/clock).*"), "threads"},
      {std::regex("^(unistd|fcntl|pthread|poll|sys/(socket|mman|stat|eventfd|wait))\\.h$"),
       "threads"},
  };
  for (const auto& [pattern, name] : *patterns) {
    if (std::regex_match(header, pattern)) return name;
  }
  return "";
}

struct Include {
  size_t line;
  std::string header;
  bool is_quoted;
};

std::vector<Include> IncludesOf(const File& file) {
  static const std::regex pattern("^\\s*#include\\s+([\"<])([^\">]+)[\">].*");
  std::vector<Include> includes;
  for (size_t i = 0; i < file.lines.size(); ++i) {
    std::smatch match;
    if (std::regex_match(file.lines[i], match, pattern)) {
      includes.push_back({i, match[2].str(), match[1].str() == "\""});
    }
  }
  return includes;
}

TEST(TidyTest, IncludesFollowTheTable) {
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!IsCode(file.path)) continue;
    const auto rule = std::find_if(IncludeRules().begin(),
                                   IncludeRules().end(),
                                   [&](const auto& r) { return file.path.starts_with(r.from); });
    if (rule == IncludeRules().end()) {
      faults.push_back(file.path + ": no include rule covers this folder");
      continue;
    }
    for (const Include& include : IncludesOf(file)) {
      const std::string library = LibraryOf(include.header);
      const bool is_generated = HasSuffix(include.header, {".pb.h"});
      if (include.is_quoted && !is_generated && Exists(include.header)) {
        const bool may = std::any_of(rule->ours.begin(), rule->ours.end(), [&](const auto& prefix) {
          return include.header.starts_with(prefix);
        });
        if (!may) faults.push_back(At(file, include.line) + "may not include " + include.header);
      }
      if (!library.empty() && !rule->libraries.contains(library)) {
        faults.push_back(At(file, include.line) + "may not use " + library + " (" + include.header +
                         ")");
      }
    }
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, KernelsNeedNeitherAbseilNorTheRestOfTheTree) {
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!IsCode(file.path) || !file.path.starts_with("kernels/")) continue;
    for (const Include& include : IncludesOf(file)) {
      if (include.header.starts_with("absl/") ||
          (include.is_quoted && !include.header.starts_with("kernels/"))) {
        faults.push_back(At(file, include.line) + include.header);
      }
    }
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, EveryTestAndBenchmarkIsBuilt) {
  std::string lists;
  for (const File& file : Tree()) {
    if (!file.path.starts_with("tests/") || !file.path.ends_with("CMakeLists.txt")) continue;
    for (const std::string& line : file.lines) lists += line + "\n";
  }
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!file.path.starts_with("tests/") ||
        !HasSuffix(file.path, {"_test.cc", "_bench.cc", "_fuzz.cc"})) {
      continue;
    }
    std::string stem = fs::path(file.path).stem().string();
    // shoal_fuzz(x) builds x_fuzz.cc.
    if (stem.ends_with("_fuzz")) stem = "shoal_fuzz(" + stem.substr(0, stem.size() - 5);
    if (lists.find(stem) == std::string::npos) faults.push_back(file.path);
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, EveryHeaderIsUsedByAnotherFile) {
  std::map<std::string, std::set<std::string>> users;
  for (const File& file : Tree()) {
    if (!IsCode(file.path)) continue;
    for (const Include& include : IncludesOf(file)) users[include.header].insert(file.path);
  }
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!file.path.ends_with(".h")) continue;
    std::set<std::string> others = users[file.path];
    std::string own = file.path;
    own.replace(own.size() - 2, 2, ".cc");
    others.erase(own);
    if (others.empty()) faults.push_back(file.path);
  }

  EXPECT_THAT(faults, IsEmpty());
}

// Two types of one name compile, link, and destroy each other's objects: `shoal` is one program,
// and coordinator and worker once had a `Worker` and a `Membership` each. Only a Debug build showed
// it.
TEST(TidyTest, ATypeNameIsDefinedInOneHeader) {
  static const std::regex definition("(class|struct|enum class) (\\w+)( final)?( :.*)? \\{.*");
  std::map<std::string, std::string> header_of;
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!HasSuffix(file.path, {".h", ".cuh"}) || file.path.starts_with("tests/")) continue;
    for (const std::string& line : file.lines) {
      std::smatch match;
      if (!std::regex_match(line, match, definition)) continue;
      const auto [first, is_new] = header_of.emplace(match[2], file.path);
      if (!is_new) faults.push_back(match[2].str() + ": " + first->second + ", " + file.path);
    }
  }

  EXPECT_THAT(faults, IsEmpty());
  EXPECT_GT(header_of.size(), 200u);
}

// "path lines" pairs that may be longer than the limit. The list may only shrink.
std::map<std::string, size_t> Exceptions() {
  std::map<std::string, size_t> exceptions;
  std::ifstream in(std::string(SHOAL_SOURCE_DIR) + "/tests/tidy/exceptions.txt");
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream fields(line);
    std::string path;
    size_t lines = 0;
    fields >> path >> lines;
    exceptions[path] = lines;
  }
  return exceptions;
}

TEST(TidyTest, NoFileGrowsPastItsLimit) {
  constexpr size_t kMaxLines = 600;
  const std::map<std::string, size_t> exceptions = Exceptions();
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!IsCode(file.path)) continue;
    const auto it = exceptions.find(file.path);
    const size_t limit = it == exceptions.end() ? kMaxLines : it->second;
    if (file.lines.size() > limit) {
      faults.push_back(file.path + " has " + std::to_string(file.lines.size()) + " lines, limit " +
                       std::to_string(limit));
    }
  }
  for (const auto& [path, limit] : exceptions) {
    if (!Exists(path)) faults.push_back("tests/tidy/exceptions.txt names " + path);
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, FileNamesAreNouns) {
  static const std::regex banned(
      ".*(^|_|/)(utils?|helpers?|common|misc|manager|handler|impl|v2|legacy)(_|\\.|$).*");
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (IsCode(file.path) && std::regex_match(file.path, banned)) faults.push_back(file.path);
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, LinksAndReadingOrderLeadSomewhere) {
  static const std::regex link("\\]\\(([^)#:]+)(#[^)]*)?\\)");
  static const std::regex next("^// Next: (\\S+?)[.,]?$");
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    const fs::path folder = fs::path(file.path).parent_path();
    bool is_in_code_block = false;
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      if (line.starts_with("```")) is_in_code_block = !is_in_code_block;
      if (file.path.ends_with(".md") && !is_in_code_block) {
        for (auto it = std::sregex_iterator(line.begin(), line.end(), link);
             it != std::sregex_iterator();
             ++it) {
          const std::string target = (*it)[1].str();
          if (!Exists((folder / target).lexically_normal().generic_string())) {
            faults.push_back(At(file, i) + target);
          }
        }
      }
      std::smatch match;
      if (IsCode(file.path) && std::regex_match(line, match, next) && !Exists(match[1].str())) {
        faults.push_back(At(file, i) + match[1].str());
      }
    }
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, EveryDecisionRecordIsLinked) {
  std::string index;
  for (const File& file : Tree()) {
    if (file.path != "docs/adr/README.md") continue;
    for (const std::string& line : file.lines) index += line + "\n";
  }
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!file.path.starts_with("docs/adr/") || file.path == "docs/adr/README.md") continue;
    if (index.find(fs::path(file.path).filename().string()) == std::string::npos) {
      faults.push_back(file.path);
    }
  }

  EXPECT_THAT(faults, IsEmpty());
}

TEST(TidyTest, CodeHasNoTabsTrailingBlanksLongLinesOrLooseEnds) {
  static const std::regex loose("\\b(TODO(?!\\(#\\d+\\))|FIXME|XXX|HACK)\\b");
  std::vector<std::string> faults;

  for (const File& file : Tree()) {
    if (!IsCode(file.path)) continue;
    const bool is_tidy = file.path == "tests/tidy/tidy_test.cc";
    for (size_t i = 0; i < file.lines.size(); ++i) {
      const std::string& line = file.lines[i];
      // Columns, not bytes: UTF-8 continuation bytes take none.
      const auto columns = std::count_if(line.begin(), line.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u;
      });
      if (line.find('\t') != std::string::npos) faults.push_back(At(file, i) + "tab");
      if (line.ends_with(' ')) faults.push_back(At(file, i) + "trailing blank");
      if (columns > 100) faults.push_back(At(file, i) + "longer than 100 columns");
      if (!is_tidy && std::regex_search(line, loose)) faults.push_back(At(file, i) + line);
    }
  }

  EXPECT_THAT(faults, IsEmpty());
}

}  // namespace
}  // namespace shoal
