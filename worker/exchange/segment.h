// The memory that the ranks of an epoch share: a doorbell per receiver and round parity, and two
// slots per pair of ranks.
//
// Two slots, used in turn, are enough: a rank that has finished round n - 1 has a frame of that
// round from everybody, so everybody had entered it and was done with what round n - 2 brought.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "base/ids.h"
#include "worker/exchange/descriptor.h"
#include "worker/exchange/transport.h"

namespace shoal {

// Zero at first.
struct alignas(64) Doorbell {
  // Frames that have come in all rounds of this parity; the word that a receiver sleeps on. It
  // only ends sleep: what has come is read from the slots.
  std::atomic<uint32_t> num_rung;
  // 1 while the receiver is going to sleep or sleeps.
  std::atomic<uint32_t> is_asleep;
};

// One frame. `num_published` is stored with release when the frame is complete, and read with
// acquire before it is looked at: that pair is all that orders the plain bytes.
struct alignas(64) Slot {
  std::atomic<uint64_t> num_published;  // The round that wrote it last, plus one
  FrameHeader header;
  // The body follows.
};

static_assert(std::atomic<uint32_t>::is_always_lock_free &&
              std::atomic<uint64_t>::is_always_lock_free);

class Segment {
 public:
  // Bytes for `num_ranks` ranks whose frames have bodies of at most `max_body` bytes.
  static size_t Size(size_t num_ranks, size_t max_body);

  // A new one, sealed so that nobody can take mapped pages away.
  static absl::StatusOr<Descriptor> Create(size_t num_ranks, size_t max_body);
  // kFailedPrecondition if `fd` is not what Create() made for the same arguments.
  static absl::StatusOr<std::unique_ptr<Segment>> Map(const Descriptor& fd,
                                                      size_t num_ranks,
                                                      size_t max_body);
  ~Segment();

  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  Doorbell& doorbell(size_t receiver, uint64_t round);
  Slot& slot(size_t src, size_t dst, uint64_t round);
  std::byte* body(size_t src, size_t dst, uint64_t round);

  size_t max_body() const { return max_body_; }

 private:
  Segment(std::byte* data, size_t num_ranks, size_t max_body)
      : data_(data), num_ranks_(num_ranks), max_body_(max_body) {}

  std::byte* const data_;
  const size_t num_ranks_;
  const size_t max_body_;
};

}  // namespace shoal
