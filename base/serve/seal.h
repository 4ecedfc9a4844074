// Bytes that others keep for us and must not read or change: AES-256-GCM under one key.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace shoal {

// Thread-safe. One key serves 2^32 seals: their nonces are random.
class Sealer {
 public:
  // REQUIRES: `key` is of NewKey.
  explicit Sealer(std::string key);

  // 32 bytes from the system.
  static std::string NewKey();

  // `context` says what the bytes belong to; they open under the same one only.
  std::string Seal(absl::string_view bytes, absl::string_view context) const;
  // kDataLoss: they were changed, cut off, sealed for another context or with another key.
  absl::StatusOr<std::string> Open(absl::string_view sealed, absl::string_view context) const;

 private:
  const std::string key_;
};

}  // namespace shoal
