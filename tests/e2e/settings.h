// The settings under which the same requests must give the same bits: their product, a choice of
// them that has every pair of values, and their spelling.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

struct Property {
  std::string name;
  std::vector<std::string> values;
};

// Workers, exchange, chunk, isa (those of this processor), cache, preempt: a fleet is started with
// them. Then batch and kill, which can differ between runs on one fleet.
const std::vector<Property>& Properties();

using Setting = std::vector<size_t>;  // [property] -> index of its value

const std::string& Value(const Setting& setting, const std::string& name);
int Number(const Setting& setting, const std::string& name);
bool IsOn(const Setting& setting, const std::string& name);

// Whether one fleet can run both, one after the other.
bool CanShareFleet(const Setting& a, const Setting& b);

// "workers=3,exchange=tcp,...", and back. Properties that are not named have their first value.
std::string Describe(const Setting& setting);
absl::StatusOr<Setting> ParseSetting(const std::string& text);

// Settings that can share a fleet are neighbours.
std::vector<Setting> WholeProduct();

// A few dozen, in which every value of a property meets every value of every other one.
std::vector<Setting> EveryPair();

}  // namespace shoal
