// Plain values <-> protobuf for the worker link, with all validation: past this file a message's
// ranks are members, its lists rise and its counts are not negative. Pure; single-threaded.
//
// Encoding never fails, save that texts of more than kMaxTextBytes are cut. Decoding refuses with
// kInvalidArgument and names the field and the value; the link it came from is then closed, because
// its peer is another program than ours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"

#include "proto/cluster.h"
#include "proto/cluster.pb.h"
#include "proto/step.h"

namespace shoal {

// A name, an endpoint or an error's text.
inline constexpr size_t kMaxTextBytes = 4096;
// A message of logits holds as many rows as fit, and at least one.
inline constexpr int64_t kMaxLogitValuesPerMessage = (4 << 20) / sizeof(float);
// Logits of one step result: 1,024 rows of the released vocabulary are below this.
inline constexpr int64_t kMaxLogitValuesPerStep = int64_t{1} << 28;

fleet::v1::ToWorker ToProto(const ToWorker& message);
absl::StatusOr<ToWorker> FromProto(const fleet::v1::ToWorker& message);

// In the order in which they must be sent: a step result's logits go ahead of it.
std::vector<fleet::v1::FromWorker> ToProto(const FromWorker& message);

// Reads one worker's stream and puts logits back into the step result that they precede.
class FromWorkerReader {
 public:
  // nullopt: the message was logits; their step result is still to come. Rows of one sequence that
  // continue each other are joined, so a result reads as it was written.
  absl::StatusOr<std::optional<FromWorker>> Read(const fleet::v1::FromWorker& message);

 private:
  absl::Status Hold(const fleet::v1::LogitRows& rows);
  absl::StatusOr<StepResult> Complete(const fleet::v1::StepResult& result);

  std::vector<LogitRows> held_;
  int64_t num_held_values_ = 0;
  StepId held_step_;  // Of held_, where that is not empty
};

}  // namespace shoal
