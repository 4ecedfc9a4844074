// Backend::GroupByExpert on the CPU: against the sorted list of pairs.
#include <algorithm>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/checked_backend.h"
#include "kernels/cpu/backend.h"
#include "tests/kernels/arrays.h"

namespace shoal {
namespace {

using testing::ElementsAre;

struct Grouped {
  std::vector<int32_t> offsets, rows, outs;
};

Grouped Group(std::vector<int32_t> ids, int64_t k, const std::vector<int32_t>& local_index) {
  CheckedBackend backend(std::make_unique<CpuBackend>(CpuBackendOptions{}));
  const auto pairs = static_cast<int64_t>(ids.size());
  const int32_t num_local = 1 + *std::ranges::max_element(local_index);
  Grouped grouped;
  grouped.offsets.assign(static_cast<size_t>(num_local) + 1, -7);
  grouped.rows.assign(ids.size(), -7);
  grouped.outs.assign(ids.size(), -7);
  backend.GroupByExpert({.ids = View(ids, pairs / k, k),
                         .local_index = Index(local_index),
                         .num_local = num_local,
                         .expert_offsets = grouped.offsets.data(),
                         .pair_row = grouped.rows.data(),
                         .pair_out = grouped.outs.data()});
  return grouped;
}

TEST(GroupByExpertOpTest, SortsPairsByLocalExpertAndKeepsTheirOrder) {
  const Grouped grouped = Group({2, 0, 0, 2, 3, 2}, 2, {1, -1, 0, 2});

  EXPECT_THAT(grouped.offsets, ElementsAre(0, 3, 5, 6));
  EXPECT_THAT(grouped.outs, ElementsAre(0, 3, 5, 1, 2, 4));
  EXPECT_THAT(grouped.rows, ElementsAre(0, 1, 2, 0, 1, 2));
}

TEST(GroupByExpertOpTest, NoRowsMakeEmptyGroups) {
  EXPECT_THAT(Group({}, 4, {0, 1}).offsets, ElementsAre(0, 0, 0));
}

TEST(GroupByExpertOpTest, EqualsAStableSort) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < 500; ++i) ids.push_back(static_cast<int32_t>(RandomBits(3, i) % 128));
  std::vector<int32_t> identity(128);
  for (size_t i = 0; i < identity.size(); ++i) identity[i] = static_cast<int32_t>(i);

  const Grouped grouped = Group(ids, 4, identity);

  std::vector<int32_t> expected(ids.size());
  for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<int32_t>(i);
  std::ranges::stable_sort(
      expected, {}, [&](int32_t pair) { return ids[static_cast<size_t>(pair)]; });
  EXPECT_EQ(grouped.outs, expected);
}

TEST(GroupByExpertOpDeathTest, AnExpertThatIsNotHeldIsABug) {
  EXPECT_DEATH(Group({1}, 1, {0, -1}), "local_index");
}

}  // namespace
}  // namespace shoal
