// What a request demands of its answer, between the API, the envelope and the core. Pure.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "coordinator/api/generation.h"
#include "coordinator/events.h"
#include "coordinator/serve/request.h"
#include "coordinator/text/constraint.h"
#include "proto/envelope.pb.h"
#include "proto/inference.pb.h"

namespace shoal {

// Of a whole output: what Generate's `constraint` means.
absl::StatusOr<ConstraintSpec> PlainConstraint(const v1::ResponseFormat& format);

// Makes every token of the request obey `spec`, which goes into the envelope. The answer's ends
// become stop tokens. kInvalidArgument: rules that cannot be, by name, or that the request's limits
// contradict; kFailedPrecondition: the server has no tokenizer.
absl::Status Constrain(const ConstraintSpec& spec,
                       const ServedModel& model,
                       const v1::Limits& limits,
                       Request* request,
                       fleet::v1::Envelope* envelope);

// The same for a chat: what its tools, tool_choice and response format demand; nothing, where they
// leave the model to itself. For whoever makes a Request of an ApiRequest, before the envelope is
// sealed: the ends of the format's answers become stop tokens of both.
absl::Status ConstrainChat(const ApiRequest& asked,
                           const ServedModel& model,
                           Request* request,
                           fleet::v1::Envelope* envelope);

// What Constrain wrote. REQUIRES: envelope.has_constraint().
ConstraintSpec SpecOf(const fleet::v1::Envelope& envelope);
std::vector<TokenId> EndsOf(const fleet::v1::Envelope& envelope);

}  // namespace shoal
