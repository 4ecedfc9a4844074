// What must hold after every event, seen from outside: by clients, and on the wire.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "coordinator/events.h"
#include "tests/sim/oracle.h"

namespace shoal::sim {

using Violation = std::function<void(std::string)>;

// What the clients asked for, and what may therefore happen to it.
struct Asked {
  Request request;
  std::vector<Expected> expected;         // By choice
  bool may_cancel = false;                // Cancelled, or left by its readers
  bool may_stop = false;                  // A stop string was found
  std::map<int32_t, int32_t> stop_index;  // By choice: last token that counts
};

// Every stream hears: Accepted first; tokens in order, once, as the oracle has them; one Finish for
// each choice, with everything before it; nothing after the last.
class StreamChecker {
 public:
  explicit StreamChecker(Violation violation) : violation_(std::move(violation)) {}

  // A stream begins. `request` outlives it.
  void Open(StreamId stream, const Asked* request, int32_t choice, int32_t next_index);
  // The client hung up: what is still said to it does not matter.
  void Close(StreamId stream);

  void See(const Action& action);

  // All streams have ended.
  void CheckAllEnded();

  int32_t num_open() const;
  // What the stream has heard of its choice.
  int32_t NextIndex(StreamId stream, int32_t choice) const;

  bool has_ended(StreamId stream) const { return views_.at(stream).has_ended; }

  absl::Status refusal(StreamId stream) const { return views_.at(stream).refusal; }

 private:
  struct View {
    const Asked* asked = nullptr;
    int32_t choice = -1;
    bool is_accepted = false;
    bool is_closed = false;
    bool has_ended = false;
    absl::Status refusal;
    std::vector<int32_t> next_index;
    std::vector<bool> is_finished;
    int32_t next_logits = 0;
  };

  View* Hear(StreamId stream);
  void SeeEmit(const Emit& emit);
  void SeeLogits(const EmitLogits& emit);
  void SeeFinish(const Finish& finish);

  Violation violation_;
  std::map<StreamId, View> views_;
};

// Of the plans that one worker has in flight, no two sequences use a block that one of them writes.
class PlanChecker {
 public:
  PlanChecker(int32_t window, Violation violation)
      : window_(window), violation_(std::move(violation)) {}

  void Sent(WorkerId worker, const StepPlan& plan);
  void Returned(WorkerId worker, StepId step);
  // No plan is in flight to it any more.
  void Reset(WorkerId worker);

 private:
  // What a plan says of all ranks' parts of its step.
  struct Bounds {
    Epoch epoch;
    StepId step;
    int32_t most_rows = 0;
    int32_t most_positions = 0;

    friend bool operator==(const Bounds&, const Bounds&) = default;
  };

  struct Use {
    SequenceId sequence;
    std::set<BlockId> written_full, written_window, seen_full, seen_window;
  };

  struct Books {
    std::map<SequenceId, std::vector<BlockId>> full, window;
    std::map<StepId, std::vector<Use>> in_flight;
  };

  Use UseOf(const PlanEntry& entry, Books* books);
  void Compare(const Use& a, const Use& b);
  void CheckBounds(const StepPlan& plan);

  const int32_t window_;
  Violation violation_;
  std::map<WorkerId, Books> books_;
  std::map<CellId, Bounds> bounds_;  // Of the cell's newest step
};

}  // namespace shoal::sim
