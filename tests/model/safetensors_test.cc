#include "model/safetensors.h"

#include <cstring>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace shoal {
namespace {

using ::testing::HasSubstr;

std::string Entry(const std::string& name,
                  const std::string& dtype,
                  const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::string ErrorOf(const std::string& json, int64_t data_bytes) {
  const auto table = ParseSafetensorsHeader(json, data_bytes);
  if (table.ok()) return "accepted";
  EXPECT_EQ(table.status().code(), absl::StatusCode::kDataLoss);
  return std::string(table.status().message());
}

absl::StatusOr<int64_t> HeaderBytes(uint64_t length, int64_t file_bytes) {
  std::byte prefix[8];
  std::memcpy(prefix, &length, 8);
  return ReadSafetensorsHeaderBytes(prefix, file_bytes);
}

TEST(SafetensorsTest, WhatIsWrittenReadsBack) {
  const std::vector<StoredTensor> tensors = {{"b", "BF16", {2, 3}, 0, 12},
                                             {"empty", "F32", {0}, 12, 12},
                                             {"a \"quoted\"", "U8", {5}, 12, 17}};

  const std::string header = WriteSafetensorsHeader(tensors);

  EXPECT_EQ(header.size() % 8, 0u);
  const auto bytes = ReadSafetensorsHeaderBytes(std::as_bytes(std::span(header).first(8)),
                                                static_cast<int64_t>(header.size()) + 17);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, static_cast<int64_t>(header.size()) - 8);
  const auto table = ParseSafetensorsHeader(absl::string_view(header).substr(8), 17);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(*table, tensors);
}

TEST(SafetensorsTest, MetadataIsNotATensor) {
  const std::string json =
      R"({"__metadata__":{"format":"pt"},)" + Entry("x", "U8", "[2]", "[0,2]") + "}";

  const auto table = ParseSafetensorsHeader(json, 2);

  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->size(), 1u);
}

TEST(SafetensorsTest, RefusesImpossibleHeaderLengths) {
  EXPECT_TRUE(HeaderBytes(100, 108).ok());
  const auto beyond = HeaderBytes(101, 108);
  EXPECT_EQ(beyond.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(beyond.status().message()),
              HasSubstr("claims 101 bytes, but the file has only 100"));
  EXPECT_TRUE(HeaderBytes(100'000'000, int64_t{1} << 40).ok());
  EXPECT_THAT(std::string(HeaderBytes(100'000'001, int64_t{1} << 40).status().message()),
              HasSubstr("100000001 bytes; at most 100000000"));
  EXPECT_FALSE(HeaderBytes(std::numeric_limits<uint64_t>::max(), int64_t{1} << 40).ok());
  EXPECT_FALSE(ReadSafetensorsHeaderBytes({}, 0).ok());
}

TEST(SafetensorsTest, RefusesBadTables) {
  struct Case {
    const char* name;
    std::string json;
    int64_t data_bytes;
    const char* said;
  };

  const std::string x = Entry("x", "BF16", "[2]", "[0,4]");
  const Case cases[] = {
      {"sound", "{" + x + "}", 4, "accepted"},
      {"truncated data",
       "{" + x + "}",
       3,
       "tensor x: ends at byte 4 of the data, but the file has only 3"},
      {"trailing data", "{" + x + "}", 5, "5 bytes of data, but its tensors end at 4"},
      {"overlap",
       "{" + x + "," + Entry("y", "BF16", "[2]", "[2,6]") + "}",
       6,
       "tensor y: begins at 2 and overlaps x"},
      {"same bytes", "{" + x + "," + Entry("y", "BF16", "[2]", "[0,4]") + "}", 4, "overlaps"},
      {"hole",
       "{" + x + "," + Entry("y", "BF16", "[2]", "[6,10]") + "}",
       10,
       "a hole behind byte 4"},
      {"hole in front", "{" + Entry("y", "BF16", "[2]", "[2,6]") + "}", 6, "a hole behind byte 0"},
      {"negative offset",
       "{" + Entry("y", "BF16", "[2]", "[-4,0]") + "}",
       4,
       "tensor y: data_offsets [-4,0]"},
      {"reversed", "{" + Entry("y", "BF16", "[2]", "[4,0]") + "}", 4, "0 <= begin <= end"},
      {"offset out of range",
       "{" + Entry("y", "BF16", "[2]", "[0,99999999999999999999]") + "}",
       4,
       "data_offsets"},
      {"misaligned",
       "{" + Entry("x", "U8", "[1]", "[0,1]") + "," + Entry("y", "BF16", "[2]", "[1,5]") + "}",
       5,
       "tensor y: begins at 1; a multiple"},
      {"size against shape",
       "{" + Entry("y", "BF16", "[3]", "[0,4]") + "}",
       4,
       "span 4 bytes; dtype BF16 and shape [3] need 6"},
      {"shape overflow",
       "{" + Entry("y", "BF16", "[4611686018427387904,4]", "[0,0]") + "}",
       0,
       "sizes that fit"},
      {"negative extent", "{" + Entry("y", "BF16", "[-2]", "[0,4]") + "}", 4, "shape [-2]"},
      {"unknown dtype",
       "{" + Entry("y", "F4", "[2]", "[0,4]") + "}",
       4,
       "unknown dtype \"F4\"; BF16 and U8"},
      {"duplicate name", "{" + x + "," + x + "}", 4, "\"x\" appears twice"},
      {"no shape", R"({"x":{"dtype":"U8","data_offsets":[0,4]}})", 4, "tensor x: shape is null"},
      {"not an object", R"({"x":3})", 4, "tensor x: its entry is not an object"},
      {"not JSON", "{\"x\"", 4, "not valid JSON"},
      {"a list", "[]", 4, "object is needed"},
      {"no tensors but data", "{}", 4, "4 bytes of data"},
  };
  for (const Case& c : cases)
    EXPECT_THAT(ErrorOf(c.json, c.data_bytes), HasSubstr(c.said)) << c.name;
}

}  // namespace
}  // namespace shoal
