#include "coordinator/serve/api_keys.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "openssl/crypto.h"
#include "openssl/sha.h"

#include "base/serve/log.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

constexpr absl::Duration kLookAgain = absl::Seconds(2);
constexpr size_t kMinKeyBytes = 8;
constexpr size_t kMaxKeyBytes = 512;

int64_t VersionOf(const std::string& path) {
  std::error_code error;
  const auto time = std::filesystem::last_write_time(path, error);
  return error ? 0 : time.time_since_epoch().count();
}

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isxdigit(static_cast<unsigned char>(c));
  });
}

}  // namespace

ApiKeys::Hash ApiKeys::HashOf(absl::string_view key) {
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), hash.data());
  return hash;
}

absl::StatusOr<std::vector<ApiKeys::Key>> ApiKeys::Parse(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the API keys in ", path));
  std::vector<Key> keys;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty() || absl::StartsWith(words[0], "#")) continue;
    // Neither the line nor the key is shown: it may be a key in the wrong place.
    const auto bad = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", number, ": ", what, "; expected `TENANT KEY` or `TENANT sha256:HEX`"));
    };
    if (words.size() != 2) return bad(absl::StrCat(words.size(), " words"));
    Key key{.tenant = words[0], .hash = {}};
    absl::string_view text = words[1];
    if (absl::ConsumePrefix(&text, "sha256:")) {
      if (text.size() != 2 * key.hash.size() || !IsHex(text)) {
        return bad("a SHA-256 has 64 hexadecimal digits");
      }
      const std::string bytes = absl::HexStringToBytes(text);
      std::copy(bytes.begin(), bytes.end(), key.hash.begin());
    } else {
      if (text.size() < kMinKeyBytes || text.size() > kMaxKeyBytes) {
        return bad(absl::StrCat("a key has ", kMinKeyBytes, " to ", kMaxKeyBytes, " characters"));
      }
      key.hash = HashOf(text);
    }
    keys.push_back(std::move(key));
  }
  if (keys.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " holds no key"));
  return keys;
}

absl::StatusOr<std::unique_ptr<ApiKeys>> ApiKeys::Load(const std::string& path) {
  auto keys = std::unique_ptr<ApiKeys>(new ApiKeys(path));
  absl::MutexLock lock(&keys->mutex_);
  keys->version_ = VersionOf(path);
  keys->checked_ = absl::Now();
  ASSIGN_OR_RETURN(keys->keys_, Parse(path));
  return keys;
}

void ApiKeys::MaybeReload() const {
  const absl::Time now = absl::Now();
  if (now < checked_ + kLookAgain) return;
  checked_ = now;
  const int64_t version = VersionOf(path_);
  if (version == version_) return;
  version_ = version;
  absl::StatusOr<std::vector<Key>> keys = Parse(path_);
  if (keys.ok()) {
    keys_ = *std::move(keys);
    Log(LogLevel::kInfo, "api_keys.read", {{"keys", keys_.size()}});
  } else {
    Log(LogLevel::kError, "api_keys.kept", {{"why", keys.status().message()}});
  }
}

absl::StatusOr<std::string> ApiKeys::TenantOf(absl::string_view authorization) const {
  absl::string_view presented = authorization;
  const size_t space = presented.find(' ');
  if (space == absl::string_view::npos ||
      !absl::EqualsIgnoreCase(presented.substr(0, space), "bearer")) {
    return absl::UnauthenticatedError("no API key: send it as `Authorization: Bearer KEY`");
  }
  presented = absl::StripAsciiWhitespace(presented.substr(space));
  const Hash hash = HashOf(presented);
  absl::MutexLock lock(&mutex_);
  MaybeReload();
  const Key* found = nullptr;
  for (const Key& key : keys_) {
    if (CRYPTO_memcmp(key.hash.data(), hash.data(), hash.size()) == 0) found = &key;
  }
  if (found == nullptr) return absl::UnauthenticatedError("the API key is not known here");
  return found->tenant;
}

}  // namespace shoal
