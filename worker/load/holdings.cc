#include "worker/load/holdings.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

std::vector<ExpertId> Union(std::span<const ExpertId> a, std::span<const ExpertId> b) {
  std::vector<ExpertId> all;
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(all));
  return all;
}

std::vector<ExpertId> Intersection(std::span<const ExpertId> a, std::span<const ExpertId> b) {
  std::vector<ExpertId> both;
  std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
  return both;
}

HeldExperts Copy(const ExpertSet& experts) {
  const std::span<const ExpertId> ids = experts.experts();
  const std::span<const ExpertLayer> layers = experts.layers();
  const std::span<const int32_t> local_index = experts.local_index();
  return {.ids = {ids.begin(), ids.end()},
          .layers = {layers.begin(), layers.end()},
          .local_index = {local_index.begin(), local_index.end()}};
}

// Geometry of `layer`, without experts.
ExpertLayer EmptyLike(const ExpertLayer& layer) {
  ExpertLayer empty;
  empty.gate_up = {.format = layer.gate_up.format,
                   .out = layer.gate_up.out,
                   .in = layer.gate_up.in,
                   .experts = {}};
  empty.down = {
      .format = layer.down.format, .out = layer.down.out, .in = layer.down.in, .experts = {}};
  return empty;
}

}  // namespace

absl::StatusOr<HeldExperts> SelectExperts(const HeldExperts& held, std::span<const ExpertId> ids) {
  HeldExperts selected{.ids = {ids.begin(), ids.end()},
                       .layers = {},
                       .local_index = std::vector<int32_t>(held.local_index.size(), -1)};
  for (size_t i = 0; i < ids.size(); ++i) {
    const auto expert = static_cast<size_t>(ids[i].value);
    if (expert >= held.local_index.size() || held.local_index[expert] < 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("expert ", ids[i].value, " is not loaded here"));
    }
    selected.local_index[expert] = static_cast<int32_t>(i);
  }
  for (const ExpertLayer& layer : held.layers) {
    ExpertLayer& chosen = selected.layers.emplace_back(EmptyLike(layer));
    for (const ExpertId id : ids) {
      const auto local = static_cast<size_t>(held.local_index[static_cast<size_t>(id.value)]);
      chosen.gate_up.experts.push_back(layer.gate_up.experts[local]);
      chosen.gate_up_bias.push_back(layer.gate_up_bias[local]);
      chosen.down.experts.push_back(layer.down.experts[local]);
      chosen.down_bias.push_back(layer.down_bias[local]);
    }
  }
  return selected;
}

Holdings::Holdings(std::unique_ptr<ExpertSet> experts)
    : experts_(std::move(experts)), thread_([this] { Run(); }) {}

Holdings::~Holdings() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  thread_.join();
}

void Holdings::Load(std::vector<ExpertId> experts, Done done) {
  absl::MutexLock lock(&mutex_);
  newest_ = experts;
  requests_.push_back({.experts = std::move(experts), .done = std::move(done)});
  progress_.is_loading = true;
  Prune();  // A load that drops the rest may begin at once.
}

absl::StatusOr<HeldExperts> Holdings::Use(std::vector<ExpertId> experts) {
  absl::MutexLock lock(&mutex_);
  ASSIGN_OR_RETURN(HeldExperts selected, SelectExperts(held_, experts));
  in_use_ = std::move(experts);
  return selected;
}

Holdings::Progress Holdings::progress() const {
  absl::MutexLock lock(&mutex_);
  return progress_;
}

void Holdings::Run() {
  while (true) {
    std::vector<ExpertId> wanted;
    Done done;
    {
      const auto has_news = [this]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
        return is_stopping_ || !requests_.empty();
      };
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&has_news));
      if (is_stopping_) return;
      wanted = in_use_;
      for (const Request& waiting : requests_) wanted = Union(wanted, waiting.experts);
    }
    absl::Status status = Hold(wanted);
    {
      absl::MutexLock lock(&mutex_);
      done = std::move(requests_.front().done);
      requests_.pop_front();
      held_ = Copy(*experts_);
      Prune();
      progress_.is_loading = !requests_.empty();
      progress_.resident_bytes = experts_->resident_bytes();
    }
    done(std::move(status));
  }
}

absl::Status Holdings::Hold(std::span<const ExpertId> experts) {
  return experts_->Hold(experts, [this](int64_t done, int64_t total) {
    absl::MutexLock lock(&mutex_);
    progress_.done_bytes = done;
    progress_.total_bytes = total;
    return !is_stopping_;
  });
}

// The views in held_ stay valid: a load keeps what was in use or asked for when it began, and what
// was asked for later than that can only be in held_ if it was in one of the two.
void Holdings::Prune() {
  const std::vector<ExpertId> kept = Intersection(held_.ids, Union(in_use_, newest_));
  absl::StatusOr<HeldExperts> pruned = SelectExperts(held_, kept);
  CHECK(pruned.ok());
  held_ = *std::move(pruned);
}

}  // namespace shoal
