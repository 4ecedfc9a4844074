#include "coordinator/serve/mask_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "base/status_macros.h"
#include "coordinator/serve/request_constraint.h"
#include "proto/envelope.pb.h"
#include "proto/token_mask.h"

namespace shoal {
namespace {

// More sequences than a fleet runs; each has at most one question at a time.
constexpr size_t kQueueCapacity = 16'384;
// A sequence that has not asked for so long has ended, or waits for a home.
constexpr absl::Duration kKeepIdle = absl::Seconds(30);
constexpr absl::Duration kSweepPeriod = absl::Seconds(1);
constexpr absl::Duration kPatience = absl::Seconds(1);

}  // namespace

MaskPool::MaskPool(const TokenIndex* index, int num_threads, OnMask on_mask)
    : index_(index), on_mask_(std::move(on_mask)), queue_(kQueueCapacity) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

MaskPool::~MaskPool() {
  Stop();
}

void MaskPool::Stop() {
  queue_.Close();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void MaskPool::Ask(AskMask ask) {
  static_cast<void>(queue_.TryPush(std::move(ask)));
}

void MaskPool::Run() {
  while (true) {
    const std::optional<AskMask> ask = queue_.Pop(absl::Now() + kPatience);
    if (ask.has_value()) {
      on_mask_(Answer(*ask));
    } else if (queue_.closed()) {
      return;
    }
  }
}

MaskReady MaskPool::Answer(const AskMask& ask) {
  MaskReady ready{.sequence = ask.sequence,
                  .num_output = static_cast<int32_t>(ask.output.size()),
                  .status = absl::OkStatus(),
                  .mask = {}};
  std::optional<Progress> progress = Take(ask.sequence);
  if (!progress.has_value() || progress->num_output > ask.output.size()) {
    absl::StatusOr<Progress> begun = Begin(ask);
    if (!begun.ok()) {
      ready.status = begun.status();
      return ready;
    }
    progress = *std::move(begun);
  }
  for (; progress->num_output < ask.output.size(); ++progress->num_output) {
    const TokenId token = ask.output[progress->num_output];
    if (progress->constraint.Advance(token)) continue;
    ready.status = absl::InternalError(absl::StrCat("token ",
                                                    token.value,
                                                    " at index ",
                                                    progress->num_output,
                                                    " of the answer breaks its rules"));
    return ready;
  }
  const TokenSet allowed = progress->constraint.Allowed();
  if (allowed.IsEmpty()) {
    ready.status = absl::FailedPreconditionError(
        "the vocabulary has no token with which the structured answer could go on");
  }
  ready.mask = PackMask(allowed.words());
  Keep(ask.sequence, *std::move(progress));
  return ready;
}

absl::StatusOr<MaskPool::Progress> MaskPool::Begin(const AskMask& ask) const {
  fleet::v1::Envelope envelope;
  const bool is_read = envelope.ParseFromString(ask.envelope) && envelope.has_constraint();
  if (!is_read || index_ == nullptr) {
    return absl::InternalError("the request's envelope has no constraint that can be read");
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ConstraintRules> rules,
                   ConstraintRules::Create(SpecOf(envelope), EndsOf(envelope), index_));
  const Constraint constraint(rules.get());
  return Progress{.rules = std::move(rules),
                  .constraint = constraint,
                  .num_output = 0,
                  .last_use = absl::Now()};
}

std::optional<MaskPool::Progress> MaskPool::Take(SequenceId sequence) {
  absl::MutexLock lock(&mutex_);
  const auto found = progress_.find(sequence);
  if (found == progress_.end()) return std::nullopt;
  std::optional<Progress> taken(std::move(found->second));
  progress_.erase(found);
  return taken;
}

void MaskPool::Keep(SequenceId sequence, Progress progress) {
  const absl::Time now = absl::Now();
  progress.last_use = now;
  absl::MutexLock lock(&mutex_);
  progress_.insert_or_assign(sequence, std::move(progress));
  if (now < next_sweep_) return;
  next_sweep_ = now + kSweepPeriod;
  std::erase_if(progress_,
                [&](const auto& entry) { return entry.second.last_use < now - kKeepIdle; });
}

}  // namespace shoal
