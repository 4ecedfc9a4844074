#include "tests/e2e/settings.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "base/prng.h"
#include "kernels/cpu/backend.h"

namespace shoal {
namespace {

constexpr size_t kIsa = 3;
constexpr size_t kNumOfFleet = 6;  // Leading properties

}  // namespace

const std::vector<Property>& Properties() {
  static const auto* const properties = [] {
    auto* list = new std::vector<Property>{
        {"workers", {"1", "2", "3", "5", "8"}},
        {"exchange", {"local", "unix", "tcp", "shm"}},
        {"chunk", {"1", "13", "128", "512"}},
        {"isa", {}},
        {"cache", {"off", "on"}},
        {"preempt", {"off", "on"}},
        {"batch", {"1", "7", "32"}},
        {"kill", {"off", "on"}},
    };
    for (const CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
      if (isa <= BestCpuIsa()) (*list)[kIsa].values.emplace_back(CpuIsaName(isa));
    }
    return list;
  }();
  return *properties;
}

const std::string& Value(const Setting& setting, const std::string& name) {
  for (size_t p = 0; p < setting.size(); ++p) {
    if (Properties()[p].name == name) return Properties()[p].values[setting[p]];
  }
  std::abort();
}

int Number(const Setting& setting, const std::string& name) {
  return std::atoi(Value(setting, name).c_str());
}

bool IsOn(const Setting& setting, const std::string& name) {
  return Value(setting, name) == "on";
}

bool CanShareFleet(const Setting& a, const Setting& b) {
  return std::equal(a.begin(), a.begin() + kNumOfFleet, b.begin());
}

std::string Describe(const Setting& setting) {
  std::vector<std::string> parts;
  for (size_t p = 0; p < setting.size(); ++p) {
    parts.push_back(absl::StrCat(Properties()[p].name, "=", Properties()[p].values[setting[p]]));
  }
  return absl::StrJoin(parts, ",");
}

absl::StatusOr<Setting> ParseSetting(const std::string& text) {
  Setting setting(Properties().size(), 0);
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    bool found = false;
    for (size_t p = 0; p < Properties().size(); ++p) {
      const auto& values = Properties()[p].values;
      const auto it = std::find(values.begin(), values.end(), pair.second);
      if (Properties()[p].name != pair.first || it == values.end()) continue;
      setting[p] = static_cast<size_t>(it - values.begin());
      found = true;
    }
    if (!found) return absl::InvalidArgumentError(absl::StrCat("not a setting: \"", part, "\""));
  }
  return setting;
}

std::vector<Setting> WholeProduct() {
  std::vector<Setting> settings = {{}};
  for (const Property& property : Properties()) {
    std::vector<Setting> longer;
    for (const Setting& setting : settings) {
      for (size_t v = 0; v < property.values.size(); ++v) {
        longer.push_back(setting);
        longer.back().push_back(v);
      }
    }
    settings = std::move(longer);
  }
  return settings;
}

// Greedy: of some random settings the one that covers most of the pairs still missing, until none
// is.
std::vector<Setting> EveryPair() {
  using Pair =
      std::tuple<size_t, size_t, size_t, size_t>;  // Property, value, later property, value
  const auto pairs_of = [](const Setting& s) {
    std::vector<Pair> pairs;
    for (size_t p = 0; p < s.size(); ++p) {
      for (size_t q = p + 1; q < s.size(); ++q) pairs.emplace_back(p, s[p], q, s[q]);
    }
    return pairs;
  };
  std::set<Pair> missing;
  for (const Setting& setting : WholeProduct()) {
    for (const Pair& pair : pairs_of(setting)) missing.insert(pair);
  }
  Prng prng(7);
  std::vector<Setting> chosen;
  while (!missing.empty()) {
    Setting best;
    size_t best_count = 0;
    for (int i = 0; i < 300; ++i) {
      Setting setting;
      for (const Property& property : Properties()) {
        setting.push_back(prng.Below(property.values.size()));
      }
      // Force one missing pair, so that every candidate covers something.
      const auto& [p, v, q, w] = *missing.begin();
      setting[p] = v;
      setting[q] = w;
      const std::vector<Pair> pairs = pairs_of(setting);
      const auto count = static_cast<size_t>(std::count_if(
          pairs.begin(), pairs.end(), [&](const Pair& pair) { return missing.contains(pair); }));
      if (count > best_count) {
        best_count = count;
        best = setting;
      }
    }
    for (const Pair& pair : pairs_of(best)) missing.erase(pair);
    chosen.push_back(best);
  }
  return chosen;
}

}  // namespace shoal
