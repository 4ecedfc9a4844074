// Sealed bytes open for their key and context, unchanged, and not otherwise.
#include "base/serve/seal.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr char kText[] = "stop at <|secret|>";

TEST(SealTest, OpensUnderItsKeyAndContextOnly) {
  const Sealer sealer(Sealer::NewKey()), other(Sealer::NewKey());

  const std::string sealed = sealer.Seal(kText, "sequence 7");

  EXPECT_THAT(sealed, Not(HasSubstr("secret")));
  EXPECT_EQ(*sealer.Open(sealed, "sequence 7"), kText);
  EXPECT_EQ(sealer.Open(sealed, "sequence 8").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(other.Open(sealed, "sequence 7").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(*sealer.Open(sealer.Seal("", ""), ""), "");
}

TEST(SealTest, EveryChangeIsSeen) {
  const Sealer sealer(Sealer::NewKey());
  const std::string sealed = sealer.Seal(kText, "");
  for (size_t i = 0; i < sealed.size(); ++i) {
    std::string changed = sealed;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_FALSE(sealer.Open(changed, "").ok()) << i;
    EXPECT_FALSE(sealer.Open(sealed.substr(0, i), "").ok()) << i;
  }
}

TEST(SealTest, TheSameBytesAreSealedOtherwiseEachTime) {
  const Sealer sealer(Sealer::NewKey());
  EXPECT_NE(sealer.Seal(kText, ""), sealer.Seal(kText, ""));
}

}  // namespace
}  // namespace shoal
