// A request's choice as the scheduler sees it: tokens, progress, memory. Its progress is the length
// of its record; everything else here says how far plans have run ahead of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "base/ids.h"
#include "coordinator/schedule/kv_space.h"
#include "proto/cluster.h"
#include "proto/token_mask.h"

namespace shoal {

//            Admit                 a preempted one's last row returns
//  kWaiting ───────▶ kRunning ───────▶ kLeaving ───────▶ kWaiting
//                        └─────────────────┴──▶ kEnded (stays only until its last row returns)
enum class SequenceState : uint8_t {
  kWaiting,  // In the queue: no home, no blocks
  kRunning,  // Has a home rank and may be planned
  kLeaving,  // Preempted: not planned; waits for the return of rows in flight
  kEnded,    // Finished: not planned; waits for the return of rows in flight
};

struct Sequence {
  // Constant after construction.
  SequenceId id;
  uint64_t request = 0;  // The coordinator's number of its request
  int32_t choice = 0;
  int32_t prompt_length = 0;
  int32_t max_length = 0;  // Of the record: prompt and output
  SamplingSettings sampling;
  std::string cache_scope;  // Tenant and salt; see CacheScope
  bool uses_prefix_cache = true;
  bool wants_prompt_logits = false;  // Never sampled; ends with its prompt
  bool is_constrained = false;       // No token is sampled without a mask made for it
  std::string envelope;

  // Accepted.
  std::vector<TokenId> tokens;  // Prompt, then output
  int32_t computed = 0;         // Leading positions whose K/V the home rank holds

  // Which tokens may come after the first `mask_length` ones. A function of them, so it outlives
  // every change of home.
  TokenMask mask;
  int32_t mask_length = -1;

  // Where it is.
  SequenceState state = SequenceState::kWaiting;
  CellId cell;
  WorkerId home;
  BlockTable table;
  int32_t num_blocks_sent = 0;        // Table entries that this epoch's plans have named
  std::set<WorkerId> record_holders;  // Told to forget it when it has ended, not before
  bool is_record_current = false;     // The last home's record is not behind
  int32_t length_at_admission = 0;

  // Ahead of the accepted: what plans in flight will have done when they return.
  int32_t planned_computed = 0;
  int32_t planned_length = 0;
  int32_t rows_in_flight = 0;  // Plan entries that have not returned

  // Steps with it that its home refused as impossible, since it last got on. Planned alone from the
  // first one on, so that the second one tells who is at fault.
  int32_t rejections = 0;

  // Life so far.
  int32_t preemptions = 0;
  int32_t epochs = 0;       // Epoch changes, up to epoch_mark
  int64_t epoch_mark = -1;  // Epochs that its cell had had by then; -1: never admitted

  // Positions with K/V when it is finished: the last output token is never computed.
  int32_t max_positions() const { return std::max(prompt_length, max_length - 1); }

  int32_t length() const { return static_cast<int32_t>(tokens.size()); }

  // Positions that plans could still compute with the tokens known or about to be sampled. The
  // last output token needs no K/V: nothing is sampled after it. A constrained sequence is planned
  // at depth one, and its last position, which gives the next token, only with that token's mask.
  int32_t unplanned_positions() const {
    const bool needs_all = wants_prompt_logits || planned_length < max_length;
    if (!needs_all || (is_constrained && planned_length > length())) return 0;
    const bool lacks_mask = is_constrained && mask_length != length();
    return planned_length - planned_computed - (lacks_mask ? 1 : 0);
  }
};

}  // namespace shoal
