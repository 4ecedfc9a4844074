#include "coordinator/text/json_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

using nlohmann::ordered_json;

std::string Place(absl::string_view text, size_t position) {
  const absl::string_view before = text.substr(0, std::min(position, text.size()));
  const size_t newline = before.rfind('\n');
  const size_t line_begin = newline == absl::string_view::npos ? 0 : newline + 1;
  return absl::StrCat("byte ",
                      position,
                      " (line ",
                      1 + std::count(before.begin(), before.end(), '\n'),
                      ", column ",
                      before.size() - line_begin + 1,
                      ")");
}

// Builds the tree. The library's own builder looks through the whole object for each new key, which
// a client could turn into hours; this one keeps a set of the keys of each open object.
class Builder final : public nlohmann::json_sax<ordered_json> {
 public:
  explicit Builder(absl::string_view text) : text_(text) {}

  const std::string& error() const { return error_; }

  ordered_json&& TakeTree() { return std::move(root_); }

  bool null() override { return Add(nullptr); }

  bool boolean(bool value) override { return Add(value); }

  bool number_integer(number_integer_t value) override { return Add(value); }

  bool number_unsigned(number_unsigned_t value) override { return Add(value); }

  bool number_float(number_float_t value, const string_t&) override { return Add(value); }

  bool string(string_t& value) override { return Add(std::move(value)); }

  bool binary(binary_t&) override { return false; }

  bool start_object(size_t) override { return Open(ordered_json::object()); }

  bool end_object() override { return Close(); }

  bool start_array(size_t) override { return Open(ordered_json::array()); }

  bool end_array() override { return Close(); }

  bool key(string_t& key) override {
    if (!open_.back().keys.insert(key).second) {
      error_ = absl::StrCat("the key \"", key, "\" appears twice in one object; once would do");
      return false;
    }
    key_ = std::move(key);
    return true;
  }

  bool parse_error(size_t position,
                   const std::string&,
                   const nlohmann::detail::exception& error) override {
    constexpr int kOutOfRange = 406;
    const size_t at = position == 0 ? 0 : position - 1;
    error_ = error.id == kOutOfRange
                 ? absl::StrCat("a number out of range at ", Place(text_, at))
                 : absl::StrCat("not valid JSON in UTF-8 at ", Place(text_, at));
    return false;
  }

 private:
  struct Container {
    ordered_json* value;  // Stays where it is: only the innermost container grows
    absl::flat_hash_set<std::string> keys;
  };

  ordered_json* Insert(ordered_json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    ordered_json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    std::vector<std::pair<const std::string, ordered_json>>& entries =
        parent.get_ref<ordered_json::object_t&>();
    entries.emplace_back(std::move(key_), std::move(value));
    return &entries.back().second;
  }

  bool Add(ordered_json value) {
    Insert(std::move(value));
    return true;
  }

  bool Open(ordered_json empty) {
    if (open_.size() >= kMaxClientJsonDepth) {
      error_ = absl::StrCat("nested deeper than ", kMaxClientJsonDepth, " levels");
      return false;
    }
    ordered_json* const value = Insert(std::move(empty));
    open_.push_back({value, {}});
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  const absl::string_view text_;
  ordered_json root_;
  std::vector<Container> open_;
  std::string key_;
  std::string error_;
};

// The shortest digits that give the number back, placed as serde_json (ryu) places the point.
std::string FloatText(double value) {
  char buffer[32];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), std::abs(value), std::chars_format::scientific)
          .ptr;
  const absl::string_view scientific(buffer, static_cast<size_t>(end - buffer));
  const size_t e = scientific.find('e');
  std::string digits(scientific.substr(0, 1));
  if (e > 2) absl::StrAppend(&digits, scientific.substr(2, e - 2));
  int exponent = 0;
  const char* const exponent_begin = buffer + e + (scientific[e + 1] == '+' ? 2 : 1);
  std::from_chars(exponent_begin, end, exponent);

  constexpr int kMaxPlainDigits = 16, kMaxLeadingZeros = 4;
  const int num_digits = static_cast<int>(digits.size());
  const int point = exponent + 1;  // Digits in front of it
  const auto zeros = [](int count) { return std::string(static_cast<size_t>(count), '0'); };
  const std::string sign = std::signbit(value) ? "-" : "";
  if (num_digits <= point && point <= kMaxPlainDigits) {
    return absl::StrCat(sign, digits, zeros(point - num_digits), ".0");
  }
  if (0 < point && point <= kMaxPlainDigits) {
    return absl::StrCat(sign,
                        digits.substr(0, static_cast<size_t>(point)),
                        ".",
                        digits.substr(static_cast<size_t>(point)));
  }
  if (-kMaxLeadingZeros <= point && point <= 0) {
    return absl::StrCat(sign, "0.", zeros(-point), digits);
  }
  return absl::StrCat(
      sign, digits.substr(0, 1), num_digits > 1 ? "." : "", digits.substr(1), "e", exponent);
}

void AppendCompact(const ordered_json& value, std::string* out) {
  switch (value.type()) {
    case ordered_json::value_t::object: {
      const char* separator = "{";
      for (const auto& [key, member] : value.get_ref<const ordered_json::object_t&>()) {
        absl::StrAppend(out, std::exchange(separator, ","), ordered_json(key).dump(), ":");
        AppendCompact(member, out);
      }
      absl::StrAppend(out, value.empty() ? "{}" : "}");
      return;
    }
    case ordered_json::value_t::array: {
      const char* separator = "[";
      for (const ordered_json& element : value) {
        absl::StrAppend(out, std::exchange(separator, ","));
        AppendCompact(element, out);
      }
      absl::StrAppend(out, value.empty() ? "[]" : "]");
      return;
    }
    case ordered_json::value_t::number_float:
      absl::StrAppend(out, FloatText(value.get<double>()));
      return;
    default:
      absl::StrAppend(out, value.dump());
  }
}

}  // namespace

absl::StatusOr<ordered_json> ParseJson(absl::string_view text) {
  Builder builder(text);
  if (!ordered_json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(builder.error());
  }
  return builder.TakeTree();
}

std::string CompactJson(const ordered_json& value) {
  std::string text;
  AppendCompact(value, &text);
  return text;
}

}  // namespace shoal
