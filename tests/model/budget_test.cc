// The byte accounting of spec 2.5.
#include "model/budget.h"

#include "gtest/gtest.h"

namespace shoal {
namespace {

TEST(BudgetTest, SizesOfTheReleases) {
  const ModelBudget small = MeasureModel(ModelConfig::GptOss20b());
  EXPECT_EQ(small.total_bytes, 13'761'264'768);
  EXPECT_EQ(small.expert_bytes, 24 * int64_t{13'236'480});
  EXPECT_EQ(small.total_bytes - small.dense_bytes, 10'165'616'640);
  EXPECT_EQ(small.parameters, 20'914'757'184);
  EXPECT_EQ(small.active_parameters, 3'608'307'264);
  EXPECT_EQ(small.bytes_touched_per_token, 3'708'089'088);

  const ModelBudget large = MeasureModel(ModelConfig::GptOss120b());
  EXPECT_EQ(large.total_bytes, 65'248'815'744);
  EXPECT_EQ(large.total_bytes - large.dense_bytes, 60'993'699'840);
  EXPECT_EQ(large.parameters, 116'829'156'672);
  EXPECT_EQ(large.active_parameters, 5'132'849'472);
  EXPECT_EQ(large.bytes_touched_per_token, 5'002'907'904);
}

TEST(BudgetTest, Bf16ExpertsHaveTheSameParameters) {
  ModelConfig config = ModelConfig::GptOss120b();
  config.storage = ExpertStorage::kBf16;

  const ModelBudget budget = MeasureModel(config);

  EXPECT_EQ(budget.parameters, 116'829'156'672);
  EXPECT_EQ(budget.total_bytes, 233'658'313'344);
  EXPECT_EQ(budget.expert_bytes, 36 * int64_t{49'783'680});
}

}  // namespace
}  // namespace shoal
