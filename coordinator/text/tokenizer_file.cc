#include "coordinator/text/tokenizer_file.h"

#include <array>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

#include "base/status_macros.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/utf8.h"

namespace shoal {
namespace {

using nlohmann::json;

template <typename... Parts>
absl::Status Refuse(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", parts...));
}

// Byte-level files spell every byte as one visible character (GPT-2's map): the 188 printable bytes
// of Latin-1 as themselves, the other 68 as U+0100 and upwards, in byte order.
constexpr size_t kNumSpellings = 0x100 + 68;

constexpr std::array<int16_t, kNumSpellings> MakeByteOfSpelling() {
  std::array<int16_t, kNumSpellings> byte_of{};
  size_t next = 0x100;
  for (int16_t byte = 0; byte < 0x100; ++byte) {
    const bool is_printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
    if (!is_printable) byte_of[static_cast<size_t>(byte)] = -1;
    byte_of[is_printable ? static_cast<size_t>(byte) : next++] = byte;
  }
  return byte_of;
}

constexpr std::array<int16_t, kNumSpellings> kByteOfSpelling = MakeByteOfSpelling();

// Undoes the map into *bytes. `spelled` is valid UTF-8, as all strings of the JSON parser are.
absl::Status DecodeByteLevel(absl::string_view spelled, std::string* bytes) {
  bytes->clear();
  for (size_t at = 0; at < spelled.size();) {
    const Utf8Sequence c = ReadUtf8(spelled, at);
    if (c.code_point >= kNumSpellings || kByteOfSpelling[c.code_point] < 0) {
      return Refuse("the vocabulary is not byte-level: no byte is spelled as a character of \"",
                    spelled,
                    "\"");
    }
    bytes->push_back(static_cast<char>(kByteOfSpelling[c.code_point]));
    at += c.size;
  }
  if (bytes->empty()) return Refuse("a token of the vocabulary or of a merge is empty");
  return absl::OkStatus();
}

// Receives the parser's events. The two big parts, /model/vocab and /model/merges, go into the
// TokenizerFile as they come: a tree of their 28 MB would be ten times as big. The rest becomes a
// tree. An event returns false, which ends the parse, once status() is an error.
class Reader final : public nlohmann::json_sax<json> {
 public:
  explicit Reader(TokenizerFile* file) : file_(*file) {}

  const absl::Status& status() const { return status_; }

  const json& tree() const { return tree_; }

  bool has_vocabulary() const { return has_vocabulary_; }

  bool has_merges() const { return has_merges_; }

  bool null() override { return Scalar(nullptr); }

  bool boolean(bool value) override { return Scalar(value); }

  bool number_integer(int64_t value) override { return Scalar(value); }

  bool number_float(double value, const std::string&) override { return Scalar(value); }

  bool binary(json::binary_t&) override { return Fail(Refuse("binary value")); }

  bool number_unsigned(uint64_t value) override {
    return part_ == Part::kVocabulary ? AddToken(value) : Scalar(value);
  }

  bool string(std::string& value) override {
    switch (part_) {
      case Part::kMerges:
        return AddMerge(value);
      case Part::kPair:
        return AddToPair(value);
      case Part::kVocabulary:
      case Part::kTree:
        break;
    }
    return Scalar(std::move(value));
  }

  bool key(std::string& name) override {
    key_ = std::move(name);
    return true;
  }

  bool start_object(size_t) override {
    if (part_ != Part::kTree) return Fail(Refuse("an object inside ", PartName()));
    if (IsBigPart("vocab")) {
      part_ = Part::kVocabulary;
      has_vocabulary_ = true;
    }
    return Open(json::object());
  }

  bool end_object() override { return Close(); }

  bool start_array(size_t) override {
    if (part_ == Part::kMerges) {
      part_ = Part::kPair;
      pair_size_ = 0;
      return true;
    }
    if (part_ != Part::kTree) return Fail(Refuse("an array inside ", PartName()));
    if (IsBigPart("merges")) {
      part_ = Part::kMerges;
      has_merges_ = true;
    }
    return Open(json::array());
  }

  bool end_array() override {
    if (part_ != Part::kPair) return Close();
    part_ = Part::kMerges;
    return pair_size_ == 2 || Fail(Refuse("merge ", NumMerges(), " is not a pair"));
  }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    return Fail(Refuse("not JSON at byte ", position));
  }

 private:
  enum class Part { kTree, kVocabulary, kMerges, kPair };

  struct OpenValue {
    json* value;
    std::string key;
  };

  static constexpr size_t kMaxDepth = 32;  // The release has 5

  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }

  bool Check(absl::Status status) { return status.ok() || Fail(std::move(status)); }

  absl::string_view PartName() const {
    return part_ == Part::kVocabulary ? "model.vocab" : "model.merges";
  }

  size_t NumMerges() const { return file_.merges.size() / 2; }

  bool IsBigPart(absl::string_view name) const {
    return open_.size() == 2 && open_[1].key == "model" && key_ == name;
  }

  // Puts a value into the tree; nullptr after a failure.
  json* Place(json value) {
    if (open_.empty()) return &(tree_ = std::move(value));
    json& parent = *open_.back().value;
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    const auto [at, is_new] = parent.emplace(key_, std::move(value));
    if (!is_new) {
      Fail(Refuse("the key \"", key_, "\" stands twice in one object"));
      return nullptr;
    }
    return &*at;
  }

  bool Open(json value) {
    if (open_.size() == kMaxDepth) return Fail(Refuse("nested deeper than ", kMaxDepth));
    json* const placed = Place(std::move(value));
    if (placed == nullptr) return false;
    open_.push_back({placed, key_});
    return true;
  }

  bool Close() {
    open_.pop_back();
    part_ = Part::kTree;  // The big parts hold no other container but pairs
    return true;
  }

  bool Scalar(json value) {
    switch (part_) {
      case Part::kTree:
        return Place(std::move(value)) != nullptr;
      case Part::kVocabulary:
        return Fail(Refuse("the id of token \"", key_, "\" is not a number from 0"));
      case Part::kMerges:
      case Part::kPair:
        return Fail(Refuse("merge ", NumMerges(), " is made of something else than strings"));
    }
    return false;
  }

  bool AddToken(uint64_t id) {
    if (id >= kMaxNumTokenIds) {
      return Fail(Refuse("token \"", key_, "\" has id ", id, "; ids are below ", kMaxNumTokenIds));
    }
    if (!Check(DecodeByteLevel(key_, &decoded_))) return false;
    file_.tokens.Append(decoded_);
    file_.token_ids.push_back(TokenId{static_cast<int32_t>(id)});
    return true;
  }

  // "a b": no token is spelled with a space.
  bool AddMerge(absl::string_view both) {
    const size_t space = both.find(' ');
    if (space == absl::string_view::npos) {
      return Fail(Refuse("merge ", NumMerges(), " is not a pair: \"", both, "\""));
    }
    return AddToPair(both.substr(0, space)) && AddToPair(both.substr(space + 1));
  }

  bool AddToPair(absl::string_view side) {
    if (!Check(DecodeByteLevel(side, &decoded_))) return false;
    file_.merges.Append(decoded_);
    ++pair_size_;
    return true;
  }

  TokenizerFile& file_;
  json tree_;
  std::vector<OpenValue> open_;  // From the root inwards; without pairs
  Part part_ = Part::kTree;
  std::string key_;
  std::string decoded_;  // Scratch
  int pair_size_ = 0;
  bool has_vocabulary_ = false;
  bool has_merges_ = false;
  absl::Status status_;
};

// `object[key]`, or null if there is no such thing.
const json& Member(const json& object, const char* key) {
  static const json null;
  if (!object.is_object()) return null;
  const auto at = object.find(key);
  return at == object.end() ? null : *at;
}

std::string Shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// A field that changes the result if it says something else. Absent and null are `expected` too
// where that is what Hugging Face's library takes them for.
absl::Status Expect(const json& object,
                    const char* key,
                    const json& expected,
                    const json& missing) {
  const json& value = Member(object, key);
  if ((value.is_null() ? missing : value) == expected) return absl::OkStatus();
  return Refuse(key, " ", Shown(value), " is not understood, only ", Shown(expected));
}

absl::Status CheckModel(const json& model) {
  RETURN_IF_ERROR(Expect(model, "type", "BPE", nullptr));
  RETURN_IF_ERROR(Expect(model, "dropout", nullptr, nullptr));
  RETURN_IF_ERROR(Expect(model, "unk_token", nullptr, nullptr));
  RETURN_IF_ERROR(Expect(model, "continuing_subword_prefix", "", ""));
  RETURN_IF_ERROR(Expect(model, "end_of_word_suffix", "", ""));
  return Expect(model, "byte_fallback", false, false);
}

absl::Status CheckPreTokenizer(const json& pre_tokenizer) {
  const json& steps = Member(pre_tokenizer, "pretokenizers");
  if (Member(pre_tokenizer, "type") != "Sequence" || steps.size() != 2) {
    return Refuse("pre_tokenizer ",
                  Shown(pre_tokenizer).substr(0, 200),
                  " is not understood, only the Sequence of Split and ByteLevel");
  }
  const json& split = steps[0];
  RETURN_IF_ERROR(Expect(split, "type", "Split", nullptr));
  RETURN_IF_ERROR(Expect(Member(split, "pattern"),
                         "Regex",
                         std::string(kSplitPattern.data(), kSplitPattern.size()),
                         nullptr));
  RETURN_IF_ERROR(Expect(split, "behavior", "Isolated", nullptr));
  RETURN_IF_ERROR(Expect(split, "invert", false, false));
  const json& byte_level = steps[1];
  RETURN_IF_ERROR(Expect(byte_level, "type", "ByteLevel", nullptr));
  RETURN_IF_ERROR(Expect(byte_level, "add_prefix_space", false, true));
  return Expect(byte_level, "use_regex", false, true);
}

// A step that is either left out or of the one type that changes nothing here.
absl::Status CheckByteLevelOrNone(const json& tree, const char* key) {
  const json& step = Member(tree, key);
  if (step.is_null() || Member(step, "type") == "ByteLevel") return absl::OkStatus();
  return Refuse(key, " ", Shown(Member(step, "type")), " is not understood, only ByteLevel");
}

absl::StatusOr<std::vector<TokenizerFile::AddedToken>> ReadAddedTokens(const json& list) {
  std::vector<TokenizerFile::AddedToken> tokens;
  if (list.is_null()) return tokens;
  if (!list.is_array()) return Refuse("added_tokens is not a list");
  for (const json& token : list) {
    const json& id = Member(token, "id");
    const json& content = Member(token, "content");
    if (!content.is_string() || content.get_ref<const std::string&>().empty() ||
        !id.is_number_unsigned() || id.get<uint64_t>() >= kMaxNumTokenIds) {
      return Refuse(
          "an added token needs a content and an id below ", kMaxNumTokenIds, ": ", Shown(token));
    }
    for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
      RETURN_IF_ERROR(Expect(token, flag, false, false));
    }
    // The others would be found in any text, allowed or not.
    RETURN_IF_ERROR(Expect(token, "special", true, nullptr));
    tokens.push_back({TokenId{id.get<int32_t>()}, content.get<std::string>()});
  }
  return tokens;
}

}  // namespace

absl::StatusOr<TokenizerFile> ReadTokenizerFile(absl::string_view text) {
  TokenizerFile file;
  Reader reader(&file);
  const bool is_complete = json::sax_parse(text.begin(), text.end(), &reader);
  RETURN_IF_ERROR(reader.status());
  if (!is_complete || !reader.tree().is_object()) return Refuse("not a JSON object");

  const json& tree = reader.tree();
  const json& model = Member(tree, "model");
  RETURN_IF_ERROR(CheckModel(model));
  if (!reader.has_vocabulary()) return Refuse("model.vocab is missing");
  if (!reader.has_merges()) return Refuse("model.merges is missing");
  const json& normalizer = Member(tree, "normalizer");
  if (!normalizer.is_null()) {
    return Refuse(
        "normalizer ", Shown(Member(normalizer, "type")), " is not understood, only null");
  }
  RETURN_IF_ERROR(CheckPreTokenizer(Member(tree, "pre_tokenizer")));
  RETURN_IF_ERROR(CheckByteLevelOrNone(tree, "post_processor"));
  RETURN_IF_ERROR(CheckByteLevelOrNone(tree, "decoder"));

  ASSIGN_OR_RETURN(file.added_tokens, ReadAddedTokens(Member(tree, "added_tokens")));
  file.ignore_merges = Member(model, "ignore_merges") == true;
  return file;
}

}  // namespace shoal
