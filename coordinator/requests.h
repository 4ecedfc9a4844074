// The requests that clients know of, with their output, and the readers attached to them. It says
// to each reader what that reader has not heard yet, in order, once.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "coordinator/events.h"
#include "coordinator/schedule/sequence.h"

namespace shoal {

struct Choice {
  SequenceId sequence;
  std::vector<OutputToken> output;
  bool is_finished = false;
  FinishReason reason = FinishReason::kStop;
  absl::Status error;
  std::optional<TokenId> stop_token;
  Usage usage;
  Timings timings;
};

struct RequestState {
  uint64_t number = 0;  // The coordinator's own, never reused
  Request request;      // Without the prompt's tokens
  int32_t prompt_tokens = 0;
  absl::Time arrival;
  std::vector<Choice> choices;
  int32_t num_unfinished = 0;
  bool is_announced = false;   // Its readers have heard Accepted
  bool is_kept = false;        // Stays attachable without readers, running or finished
  int32_t logits_emitted = 0;  // Positions
  std::set<StreamId> readers;
  absl::Time forget_at = absl::InfiniteFuture();  // Finished or without readers: when it goes

  bool is_finished() const { return num_unfinished == 0; }
};

// The sequence of one choice, waiting, with the prompt as its tokens.
Sequence NewSequence(SequenceId id,
                     const RequestState& request,
                     int32_t choice,
                     const std::vector<TokenId>& prompt);

class Requests {
 public:
  // `max_retained`: of finished requests; beyond, the one to be forgotten first goes at once.
  Requests(absl::Duration retention, int32_t max_retained);

  // REQUIRES: (tenant, id) is not known.
  RequestState* Add(absl::Time now, Request request);

  RequestState* Find(absl::string_view tenant, absl::string_view id);
  RequestState* At(uint64_t number);
  RequestState* OfReader(StreamId stream);

  // The reader hears everything from `next_index` of `choice` on (of every choice if -1).
  void Attach(StreamId stream,
              int32_t choice,
              int32_t next_index,
              RequestState* request,
              std::vector<Action>* actions);
  // The reader is gone; its request stays.
  void Detach(StreamId stream);

  // It will be served: tells all readers.
  void Announce(RequestState* request, std::vector<Action>* actions);
  // The choice's output has grown.
  void Deliver(RequestState* request, int32_t choice, std::vector<Action>* actions);
  void DeliverLogits(RequestState* request, const LogitRows& rows, std::vector<Action>* actions);
  // The choice ended; fills in usage and total time. A request that ended entirely is retained or
  // forgotten: `request` is not valid afterwards.
  void Finish(absl::Time now,
              FinishReason reason,
              absl::Status error,
              RequestState* request,
              int32_t choice,
              std::vector<Action>* actions);
  // The request will not run. `request` is not valid afterwards.
  void Refuse(absl::Status status, RequestState* request, std::vector<Action>* actions);

  // Its last reader left, to come back: it is given the retention time.
  void Park(absl::Time now, RequestState* request);

  // Unfinished requests that nobody came back for, or whose deadline has passed, in order.
  struct Overdue {
    uint64_t request = 0;
    FinishReason reason = FinishReason::kDeadline;
  };

  // Also forgets finished ones whose time has come.
  std::vector<Overdue> Expire(absl::Time now);
  absl::Time NextDeadline() const;

  int32_t num_retained() const { return num_retained_; }

  size_t size() const { return requests_.size(); }

 private:
  struct Reader {
    uint64_t request = 0;
    int32_t choice = -1;
    std::vector<int32_t> next_index;  // By choice
    std::vector<bool> is_done;        // By choice: Finish was sent
  };

  void Tell(StreamId stream,
            const RequestState& request,
            int32_t choice,
            std::vector<Action>* actions);
  void ForgetAt(absl::Time when, RequestState* request);
  void Erase(RequestState* request);

  const absl::Duration retention_;
  const int32_t max_retained_;
  std::map<uint64_t, RequestState> requests_;
  std::map<std::pair<std::string, std::string>, uint64_t> by_name_;  // (tenant, id)
  std::map<StreamId, Reader> readers_;
  std::set<std::pair<absl::Time, uint64_t>> deadlines_;  // Of unfinished requests
  std::set<std::pair<absl::Time, uint64_t>> forget_;     // forget_at
  uint64_t last_number_ = 0;
  int32_t num_retained_ = 0;
};

}  // namespace shoal
