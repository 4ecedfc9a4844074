#include "coordinator/cluster/roster.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal {
namespace {

// Part of a worker's memory beside the dense weights that experts may take; the rest is for K/V.
constexpr int64_t kExpertShareNumerator = 15;
constexpr int64_t kExpertShareDenominator = 16;

int32_t MaxExperts(const Enrol& enrol) {
  if (enrol.expert_bytes <= 0) return std::numeric_limits<int32_t>::max();
  const int64_t room = std::max<int64_t>(0, enrol.memory_bytes - enrol.dense_bytes);
  const int64_t experts =
      room / kExpertShareDenominator * kExpertShareNumerator / enrol.expert_bytes;
  return static_cast<int32_t>(std::min<int64_t>(experts, std::numeric_limits<int32_t>::max()));
}

absl::Status CheckModel(absl::string_view what, int32_t theirs, int32_t ours) {
  if (ours == 0 || theirs == ours) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the worker's checkpoint has ", theirs, " ", what, ", the coordinator's has ", ours));
}

}  // namespace

std::string Describe(const NumericsClass& numerics) {
  return absl::StrCat("backend ",
                      numerics.backend,
                      ", numerics ",
                      numerics.numerics_version,
                      ", checkpoint ",
                      numerics.checkpoint_digest,
                      ", version ",
                      numerics.version);
}

Roster::Roster(int32_t num_experts, int32_t num_layers)
    : num_experts_(num_experts), num_layers_(num_layers) {}

absl::Status Roster::Add(absl::Time now, const Enrol& enrol) {
  if (const auto known = workers_.find(enrol.worker); known != workers_.end()) {
    return absl::AlreadyExistsError(absl::StrCat("worker id ",
                                                 enrol.worker.value,
                                                 " is in use by ",
                                                 known->second.enrol.process,
                                                 " on ",
                                                 known->second.enrol.host,
                                                 "; give this one another id"));
  }
  if (numerics_.has_value() && enrol.numerics != *numerics_) {
    return absl::FailedPreconditionError(absl::StrCat("the worker's numerics (",
                                                      Describe(enrol.numerics),
                                                      ") are not the fleet's (",
                                                      Describe(*numerics_),
                                                      ")"));
  }
  if (absl::Status s = CheckModel("experts", enrol.num_experts, num_experts_); !s.ok()) return s;
  if (absl::Status s = CheckModel("layers", enrol.num_layers, num_layers_); !s.ok()) return s;
  numerics_ = enrol.numerics;
  EnrolledWorker& worker = workers_[enrol.worker];
  worker.enrol = enrol;
  worker.last_heard = now;
  worker.max_experts = MaxExperts(enrol);
  return absl::OkStatus();
}

void Roster::Remove(WorkerId worker) {
  CHECK_EQ(workers_.erase(worker), 1u);
}

EnrolledWorker* Roster::Find(WorkerId worker, Incarnation incarnation) {
  const auto found = workers_.find(worker);
  if (found == workers_.end() || found->second.enrol.incarnation != incarnation) return nullptr;
  return &found->second;
}

EnrolledWorker& Roster::At(WorkerId worker) {
  const auto found = workers_.find(worker);
  CHECK(found != workers_.end());
  return found->second;
}

const EnrolledWorker& Roster::At(WorkerId worker) const {
  const auto found = workers_.find(worker);
  CHECK(found != workers_.end());
  return found->second;
}

std::vector<WorkerId> Roster::SilentSince(absl::Time before) const {
  std::vector<WorkerId> silent;
  for (const auto& [id, worker] : workers_) {
    if (worker.last_heard <= before) silent.push_back(id);
  }
  return silent;
}

absl::Time Roster::OldestWord() const {
  absl::Time oldest = absl::InfiniteFuture();
  for (const auto& [id, worker] : workers_) oldest = std::min(oldest, worker.last_heard);
  return oldest;
}

std::vector<WorkerId> Roster::Spares() const {
  std::vector<WorkerId> spares;
  for (const auto& [id, worker] : workers_) {
    if (!worker.cell.has_value()) spares.push_back(id);
  }
  return spares;
}

void Roster::ForgetNumerics() {
  if (workers_.empty()) numerics_.reset();
}

}  // namespace shoal
