// How two ranks of an epoch recognise each other on a fresh connection. Values and their checks; no
// I/O.
//
//   who dials                         who listens
//   Hello   who, to whom, nonce  -->
//                                <--  Answer  nonce, HMAC(key, "answer", Hello, nonce)
//   Proof   HMAC(key, "proof", Hello, Answer)  -->
//
// Both know the epoch's key before either counts the other as a rank, and both nonces make old
// messages worthless. Only the numbers in a Hello tell that a peer is at another epoch: its key is
// not known here. The connection is not encrypted.
#pragma once

#include <array>
#include <cstdint>

#include "worker/exchange/exchange.h"

namespace shoal {

using Nonce = std::array<uint8_t, 16>;
using Mac = std::array<uint8_t, 32>;  // HMAC-SHA-256

// As it travels; in the byte order of the host, as rows are.
struct Hello {
  static constexpr uint32_t kMagic = 0x6c616f68;  // "shoal", as far as it fits
  static constexpr uint32_t kVersion = 1;

  uint32_t magic = kMagic;
  uint32_t version = kVersion;
  uint64_t epoch = 0;
  uint32_t cell = 0;
  int32_t src = 0;
  int32_t dst = 0;
  int32_t num_ranks = 0;
  uint64_t src_incarnation = 0;
  uint64_t dst_incarnation = 0;
  Nonce nonce{};
};

struct Answer {
  static constexpr uint32_t kWelcome = 1;
  static constexpr uint32_t kStale = 2;  // `epoch` is the listener's, above the dialler's

  uint32_t magic = Hello::kMagic;
  uint32_t code = kWelcome;
  uint64_t epoch = 0;
  Nonce nonce{};
  Mac mac{};
};

struct Proof {
  Mac mac{};
};

static_assert(sizeof(Hello) == 64 && sizeof(Answer) == 64 && sizeof(Proof) == 32);

enum class Guest {
  kMember,    // Of this epoch, if it can prove it
  kEarly,     // At a later epoch than we are
  kLate,      // At an earlier one
  kStranger,  // Not meant for us
};

Hello MakeHello(const Membership& membership, Rank dst);
Guest Judge(const Hello& hello, const Membership& membership);
// True if a hello of another epoch comes from one of our members and is meant for us.
bool IsKnown(const Hello& hello, const Membership& membership);

Answer MakeWelcome(const Hello& hello, const Membership& membership);
Answer MakeStale(const Membership& membership);
bool IsWelcome(const Answer& answer, const Hello& hello, const EpochKey& key);

Proof MakeProof(const Hello& hello, const Answer& answer, const EpochKey& key);
bool IsProven(const Proof& proof, const Hello& hello, const Answer& answer, const EpochKey& key);

}  // namespace shoal
