// A safetensors file's first bytes: whatever they are, they are refused or give a table that covers
// the data exactly, and that table written again reads back as itself.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace shoal;
  // The last byte says how much data follows the header; the rest is the file so far.
  if (size == 0) return 0;
  const int64_t data_bytes = data[--size];
  const std::span<const uint8_t> file(data, size);
  const auto length =
      ReadSafetensorsHeaderBytes(std::as_bytes(file), static_cast<int64_t>(size) + data_bytes);
  if (!length.ok() || *length > static_cast<int64_t>(size) - kSafetensorsPrefixBytes) return 0;
  const absl::string_view json(reinterpret_cast<const char*>(data) + kSafetensorsPrefixBytes,
                               static_cast<size_t>(*length));
  const int64_t left = static_cast<int64_t>(size) + data_bytes - kSafetensorsPrefixBytes - *length;
  const auto table = ParseSafetensorsHeader(json, left);
  if (!table.ok()) return 0;
  int64_t covered = 0;
  for (const StoredTensor& tensor : *table) {
    CHECK_EQ(tensor.begin, covered);
    covered = tensor.end;
  }
  CHECK_EQ(covered, left);
  const std::string again = WriteSafetensorsHeader(*table);
  const auto reread =
      ParseSafetensorsHeader(absl::string_view(again).substr(kSafetensorsPrefixBytes), left);
  CHECK(reread.ok());
  CHECK(*reread == *table);
  return 0;
}
