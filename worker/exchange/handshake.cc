#include "worker/exchange/handshake.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "openssl/crypto.h"
#include "openssl/evp.h"
#include "openssl/hmac.h"
#include "openssl/rand.h"

#include "base/check.h"

namespace shoal {
namespace {

Nonce RandomNonce() {
  Nonce nonce;
  CHECK_EQ(RAND_bytes(nonce.data(), static_cast<int>(nonce.size())), 1);
  return nonce;
}

// The parts have fixed lengths, so no two different lists of them are the same bytes.
template <typename... Parts>
Mac Authenticate(const EpochKey& key, const char (&label)[7], const Parts&... parts) {
  std::string text(label, sizeof(label));
  (text.append(reinterpret_cast<const char*>(&parts), sizeof(parts)), ...);
  Mac mac;
  unsigned int size = 0;
  CHECK(HMAC(EVP_sha256(),
             key.data(),
             static_cast<int>(key.size()),
             reinterpret_cast<const unsigned char*>(text.data()),
             text.size(),
             mac.data(),
             &size) != nullptr);
  CHECK_EQ(size_t{size}, mac.size());
  return mac;
}

Mac AnswerMac(const Answer& answer, const Hello& hello, const EpochKey& key) {
  return Authenticate(key, "answer", hello, answer.epoch, answer.nonce);
}

Mac ProofMac(const Hello& hello, const Answer& answer, const EpochKey& key) {
  return Authenticate(key, "proof\0", hello, answer);
}

bool AreEqual(const Mac& a, const Mac& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

bool IsOurs(const Hello& hello) {
  return hello.magic == Hello::kMagic && hello.version == Hello::kVersion;
}

const Member* Find(const Membership& membership, int32_t rank) {
  const bool exists = rank >= 0 && static_cast<size_t>(rank) < membership.members.size();
  return exists ? &membership.members[static_cast<size_t>(rank)] : nullptr;
}

}  // namespace

Hello MakeHello(const Membership& membership, Rank dst) {
  const Member* from = Find(membership, membership.self.value);
  const Member* to = Find(membership, dst.value);
  CHECK(from != nullptr && to != nullptr);
  return {.epoch = membership.epoch.value,
          .cell = membership.cell.value,
          .src = membership.self.value,
          .dst = dst.value,
          .num_ranks = static_cast<int32_t>(membership.members.size()),
          .src_incarnation = from->incarnation.value,
          .dst_incarnation = to->incarnation.value,
          .nonce = RandomNonce()};
}

Guest Judge(const Hello& hello, const Membership& membership) {
  if (!IsOurs(hello) || hello.cell != membership.cell.value) return Guest::kStranger;
  if (hello.epoch > membership.epoch.value) return Guest::kEarly;
  if (hello.epoch < membership.epoch.value) return Guest::kLate;
  const Member* from = Find(membership, hello.src);
  const Member* to = Find(membership, membership.self.value);
  const bool fits = from != nullptr && hello.src > membership.self.value &&
                    hello.dst == membership.self.value &&
                    hello.num_ranks == static_cast<int32_t>(membership.members.size()) &&
                    hello.src_incarnation == from->incarnation.value &&
                    hello.dst_incarnation == to->incarnation.value;
  return fits ? Guest::kMember : Guest::kStranger;
}

bool IsKnown(const Hello& hello, const Membership& membership) {
  const Member* self = Find(membership, membership.self.value);
  return hello.dst_incarnation == self->incarnation.value &&
         std::ranges::any_of(membership.members, [&](const Member& member) {
           return member.incarnation.value == hello.src_incarnation;
         });
}

Answer MakeWelcome(const Hello& hello, const Membership& membership) {
  Answer answer{.code = Answer::kWelcome, .epoch = membership.epoch.value, .nonce = RandomNonce()};
  answer.mac = AnswerMac(answer, hello, membership.key);
  return answer;
}

Answer MakeStale(const Membership& membership) {
  return {.code = Answer::kStale, .epoch = membership.epoch.value};
}

bool IsWelcome(const Answer& answer, const Hello& hello, const EpochKey& key) {
  return answer.magic == Hello::kMagic && answer.code == Answer::kWelcome &&
         answer.epoch == hello.epoch && AreEqual(answer.mac, AnswerMac(answer, hello, key));
}

Proof MakeProof(const Hello& hello, const Answer& answer, const EpochKey& key) {
  return {.mac = ProofMac(hello, answer, key)};
}

bool IsProven(const Proof& proof, const Hello& hello, const Answer& answer, const EpochKey& key) {
  return AreEqual(proof.mac, ProofMac(hello, answer, key));
}

}  // namespace shoal
