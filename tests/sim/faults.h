// What may go wrong, and what is asked, in one run. The seed first draws which kinds of trouble and
// of work exist at all, then the run: runs differ in kind, not only in order.
#pragma once

#include <cstdint>

#include "base/prng.h"
#include "coordinator/coordinator.h"

namespace shoal::sim {

// Times are microseconds of virtual time.
struct Faults {
  int64_t crash_every = 0;           // Mean time between two such faults; 0: none
  int64_t freeze_every = 0;          // A worker stops for a while, link and all
  int64_t unlink_every = 0;          // A link breaks; both ends live on
  double fail_exchange_percent = 0;  // Of steps
  double duplicate_percent = 0;      // Of plans: delivered again, later
  double half_open_percent = 0;      // Of broken links: the coordinator is not told
  int64_t max_delay = 500;           // Of a message
  int64_t slow_rank_time = 0;        // Added to one rank's steps
  int64_t max_mask_delay = 500;      // Until a mask is there
  double lose_mask_percent = 0;      // Of answers
  double repeat_mask_percent = 0;    // Of answers: given again, later
  int64_t end = 2'000'000;           // From then on nothing goes wrong any more
};

struct Workload {
  int32_t num_requests = 20;
  int64_t arrive_within = 1'000'000;  // A herd: 1
  int32_t max_prompt = 60;
  int32_t max_output = 40;
  int32_t max_choices = 1;
  double shared_prefix_percent = 0;
  double cancel_percent = 0;
  double detach_percent = 0;
  double stop_percent = 0;
  double deadline_percent = 0;
  double named_percent = 0;
  double logits_percent = 0;
  double constrained_percent = 0;
};

struct Scene {
  Faults faults;
  Workload workload;
  int32_t num_workers = 1;
  int32_t num_full_blocks = 0;
  int32_t num_window_blocks = 0;
  int32_t max_experts = 0;  // Of one worker
  CoordinatorOptions options;
};

inline Scene DrawScene(Prng* prng) {
  Scene scene;
  const auto draw = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(prng->Below(static_cast<uint64_t>(high - low + 1)));
  };
  const auto maybe = [&](double percent, double value) {
    return prng->Chance(percent) ? value : 0.0;
  };
  const auto draw32 = [&](int64_t low, int64_t high) {
    return static_cast<int32_t>(draw(low, high));
  };

  Faults& faults = scene.faults;
  if (prng->Chance(50)) faults.crash_every = draw(150'000, 1'000'000);
  if (prng->Chance(25)) faults.freeze_every = draw(300'000, 1'000'000);
  if (prng->Chance(30)) faults.unlink_every = draw(200'000, 1'000'000);
  faults.fail_exchange_percent = maybe(40, static_cast<double>(draw(1, 10)));
  faults.duplicate_percent = maybe(40, 10);
  faults.half_open_percent = maybe(30, 50);
  faults.max_delay = draw(100, 5'000);
  faults.slow_rank_time = prng->Chance(20) ? draw(1'000, 20'000) : 0;
  faults.max_mask_delay = prng->Chance(30) ? draw(1'000, 30'000) : 500;
  faults.lose_mask_percent = maybe(40, static_cast<double>(draw(1, 20)));
  faults.repeat_mask_percent = maybe(40, 20);

  Workload& work = scene.workload;
  work.num_requests = draw32(5, 30);
  work.arrive_within = prng->Chance(25) ? 1 : draw(100'000, 1'500'000);
  work.max_prompt = prng->Chance(30) ? 300 : 60;
  work.max_output = draw32(1, 60);
  work.max_choices = prng->Chance(30) ? 3 : 1;
  work.shared_prefix_percent = maybe(60, 70);
  work.cancel_percent = maybe(40, 20);
  work.detach_percent = maybe(40, 30);
  work.stop_percent = maybe(30, 20);
  work.deadline_percent = maybe(30, 20);
  work.named_percent = maybe(60, 50);
  work.logits_percent = maybe(20, 20);
  work.constrained_percent = maybe(60, static_cast<double>(draw(10, 100)));

  CoordinatorOptions& options = scene.options;
  options.workers_per_cell = draw32(1, 4);
  const int32_t num_cells = prng->Chance(25) ? 2 : 1;
  scene.num_workers = options.workers_per_cell * num_cells + draw32(0, 1);
  options.min_workers = draw32(1, options.workers_per_cell);
  options.num_experts = draw32(1, 10);
  options.expert_copies = draw32(1, 2);
  options.num_layers = 2;
  options.max_positions = 512;
  options.sliding_window = prng->Chance(80) ? draw32(1, 100) : 0;
  options.max_rows = draw32(8, 100);
  options.prefill_chunk = draw32(3, 100);
  options.max_running = draw32(1, 16);
  options.pipeline_depth = draw32(1, 2);
  options.prefix_cache = prng->Chance(75);
  options.force_preempt_every = prng->Chance(25) ? draw32(1, 10) : 0;
  options.seed = prng->Next();
  options.step_deadline = absl::Milliseconds(100);
  options.beat_deadline = absl::Milliseconds(250);
  options.epoch_deadline = absl::Milliseconds(100);
  options.retention = absl::Seconds(1000);
  options.mask_patience = absl::Milliseconds(50);

  // From "one long sequence just fits" to plenty.
  scene.num_full_blocks = draw32(14, 60);
  scene.num_window_blocks = draw32(8, 60);
  // From "all workers of a cell together hold one copy" to "each holds everything".
  const int32_t least =
      (options.num_experts + options.workers_per_cell - 1) / options.workers_per_cell;
  scene.max_experts = draw32(least, options.num_experts);
  return scene;
}

}  // namespace shoal::sim
