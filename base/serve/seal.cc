#include "base/serve/seal.h"

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "openssl/evp.h"
#include "openssl/rand.h"

#include "base/check.h"

namespace shoal {
namespace {

// nonce | ciphertext, as long as the text | tag
constexpr size_t kKeyBytes = 32;
constexpr size_t kNonceBytes = 12;
constexpr size_t kTagBytes = 16;

using Context = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

Context NewContext() {
  Context context(EVP_CIPHER_CTX_new(), &EVP_CIPHER_CTX_free);
  CHECK(context != nullptr);
  return context;
}

const unsigned char* In(absl::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

unsigned char* Out(std::string* bytes, size_t at) {
  return reinterpret_cast<unsigned char*>(bytes->data() + at);
}

int Length(absl::string_view bytes) {
  return static_cast<int>(bytes.size());
}

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  CHECK_EQ(RAND_bytes(Out(&bytes, 0), static_cast<int>(count)), 1);
  return bytes;
}

}  // namespace

Sealer::Sealer(std::string key) : key_(std::move(key)) {
  CHECK_EQ(key_.size(), kKeyBytes);
}

std::string Sealer::NewKey() {
  return RandomBytes(kKeyBytes);
}

std::string Sealer::Seal(absl::string_view bytes, absl::string_view context) const {
  const std::string nonce = RandomBytes(kNonceBytes);
  std::string sealed = nonce;
  sealed.resize(kNonceBytes + bytes.size() + kTagBytes);
  const Context cipher = NewContext();
  int length = 0;
  CHECK_EQ(EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, In(key_), In(nonce)), 1);
  CHECK_EQ(EVP_EncryptUpdate(cipher.get(), nullptr, &length, In(context), Length(context)), 1);
  CHECK_EQ(
      EVP_EncryptUpdate(cipher.get(), Out(&sealed, kNonceBytes), &length, In(bytes), Length(bytes)),
      1);
  CHECK_EQ(EVP_EncryptFinal_ex(cipher.get(), Out(&sealed, kNonceBytes + bytes.size()), &length), 1);
  CHECK_EQ(
      EVP_CIPHER_CTX_ctrl(
          cipher.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, Out(&sealed, kNonceBytes + bytes.size())),
      1);
  return sealed;
}

absl::StatusOr<std::string> Sealer::Open(absl::string_view sealed,
                                         absl::string_view context) const {
  const absl::Status failed = absl::DataLossError(
      "sealed bytes do not open: they were changed, belong elsewhere, or have another key");
  if (sealed.size() < kNonceBytes + kTagBytes) return failed;
  const absl::string_view nonce = sealed.substr(0, kNonceBytes);
  const absl::string_view text =
      sealed.substr(kNonceBytes, sealed.size() - kNonceBytes - kTagBytes);
  std::string tag(sealed.substr(sealed.size() - kTagBytes));
  std::string bytes(text.size(), '\0');
  const Context cipher = NewContext();
  int length = 0;
  CHECK_EQ(EVP_DecryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, In(key_), In(nonce)), 1);
  CHECK_EQ(EVP_DecryptUpdate(cipher.get(), nullptr, &length, In(context), Length(context)), 1);
  CHECK_EQ(EVP_DecryptUpdate(cipher.get(), Out(&bytes, 0), &length, In(text), Length(text)), 1);
  CHECK_EQ(EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, Out(&tag, 0)), 1);
  unsigned char none[1];
  if (EVP_DecryptFinal_ex(cipher.get(), none, &length) != 1) return failed;
  return bytes;
}

}  // namespace shoal
