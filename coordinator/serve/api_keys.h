// Who may use the HTTP door: a file of keys, each with the tenant that it stands for.
//
//     # tenant  key, or the SHA-256 of one
//     acme      shl_4Q7...
//     acme      sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//
// The file is looked at again every few seconds, so that a key can be taken back; one that cannot
// be read leaves the keys as they are.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace shoal {

class ApiKeys {
 public:
  // Errors name the file and the line.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path);

  // The tenant of "Bearer KEY", the value of an Authorization field. kUnauthenticated otherwise;
  // how long that takes depends on the number of keys only. Thread-safe.
  absl::StatusOr<std::string> TenantOf(absl::string_view authorization) const;

 private:
  using Hash = std::array<unsigned char, 32>;

  struct Key {
    std::string tenant;
    Hash hash;
  };

  explicit ApiKeys(std::string path) : path_(std::move(path)) {}

  static absl::StatusOr<std::vector<Key>> Parse(const std::string& path);
  static Hash HashOf(absl::string_view key);
  void MaybeReload() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string path_;
  mutable absl::Mutex mutex_;
  mutable std::vector<Key> keys_ ABSL_GUARDED_BY(mutex_);
  mutable absl::Time checked_ ABSL_GUARDED_BY(mutex_);
  mutable int64_t version_ ABSL_GUARDED_BY(mutex_) = 0;  // The file's time of change
};

}  // namespace shoal
