#include "base/serve/log.h"

#include <string>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

TEST(LogTest, ALineIsOneLineOfNamesAndValues) {
  EXPECT_EQ(FormatLogLine("call",
                          {{"id", "req-1"},
                           {"tokens", 12},
                           {"share", 0.5},
                           {"ok", true},
                           {"took", absl::Milliseconds(1500)}}),
            "call id=req-1 tokens=12 share=0.5 ok=true took=1.5s");
}

TEST(LogTest, ValuesCannotForgeALineOrAField) {
  EXPECT_EQ(FormatLogLine("call", {{"id", "a b=c\nerror \"x\"\x1b[31m\\"}, {"empty", ""}}),
            "call id=\"a b=c\\x0aerror \\\"x\\\"\\x1b[31m\\\\\" empty=\"\"");
}

TEST(LogTest, LongValuesAreCut) {
  EXPECT_EQ(FormatLogLine("call", {{"id", std::string(5000, 'x')}}).size(), 8u + 1024u);
}

}  // namespace
}  // namespace shoal
