#include "worker/exchange/transport.h"

#include "absl/strings/str_cat.h"

#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

absl::string_view Name(ExchangeOp op) {
  switch (op) {
    case ExchangeOp::kOpen:
      return "open";
    case ExchangeOp::kDispatch:
      return "dispatch";
    case ExchangeOp::kCombine:
      return "combine";
  }
  return "an unknown operation";
}

}  // namespace

absl::Status CheckHeader(const FrameHeader& got, const FrameHeader& sent, size_t max_bytes) {
  const Rank src{sent.dst};
  const auto fail = [&](absl::Status status) { return WithSuspects(status, {&src, 1}); };
  if (got.magic != FrameHeader::kMagic || got.src != sent.dst || got.dst != sent.src) {
    return fail(absl::UnavailableError(
        absl::StrCat("rank ", src.value, " sent something that is not a frame of its own")));
  }
  if (got.epoch != sent.epoch) {
    return fail(absl::FailedPreconditionError(absl::StrCat(
        "rank ", src.value, " is at epoch ", got.epoch, ", this rank at epoch ", sent.epoch)));
  }
  if (got.op != sent.op || got.seq != sent.seq) {
    return fail(absl::FailedPreconditionError(absl::StrCat("operations in another order: rank ",
                                                           src.value,
                                                           " does ",
                                                           Name(got.op),
                                                           " as number ",
                                                           got.seq,
                                                           ", this rank ",
                                                           Name(sent.op),
                                                           " as number ",
                                                           sent.seq)));
  }
  if (got.bytes > max_bytes) {
    return fail(absl::FailedPreconditionError(absl::StrCat("rank ",
                                                           src.value,
                                                           " sends ",
                                                           got.bytes,
                                                           " bytes where at most ",
                                                           max_bytes,
                                                           " can be meant")));
  }
  return absl::OkStatus();
}

}  // namespace shoal
