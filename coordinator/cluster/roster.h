// Who is alive: the enrolled workers, what each has told, and which of them have been silent too
// long.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "base/ids.h"
#include "proto/cluster.h"

namespace shoal {

struct EnrolledWorker {
  Enrol enrol;
  absl::Time last_heard;
  Beat beat;
  std::optional<CellId> cell;

  // Experts. `held` are ready to serve; `asked` is the last LoadExperts, until its answer comes.
  std::set<ExpertId> held;
  std::set<ExpertId> asked;
  uint64_t asked_version = 0;  // 0: nothing is asked
  int32_t max_experts = 0;     // That its memory holds
  bool has_loaded = false;     // Has answered once: what is below is known
  int32_t num_full_blocks = 0;
  int32_t num_window_blocks = 0;
};

class Roster {
 public:
  // What a worker must serve; 0: not known.
  Roster(int32_t num_experts, int32_t num_layers);

  // Judges an enrolment. OK: the worker is a member. kAlreadyExists: its identity is alive with
  // another incarnation. kFailedPrecondition: other numerics or another model than the fleet's.
  // REQUIRES: this incarnation is not a member.
  absl::Status Add(absl::Time now, const Enrol& enrol);

  void Remove(WorkerId worker);

  // Null if the worker is not a member with this incarnation.
  EnrolledWorker* Find(WorkerId worker, Incarnation incarnation);
  // REQUIRES: it is a member.
  EnrolledWorker& At(WorkerId worker);
  const EnrolledWorker& At(WorkerId worker) const;

  bool Contains(WorkerId worker) const { return workers_.contains(worker); }

  // Members that said nothing since `before`.
  std::vector<WorkerId> SilentSince(absl::Time before) const;
  // When the member that was silent longest was heard; infinite future without members.
  absl::Time OldestWord() const;

  // Members without a cell, by id.
  std::vector<WorkerId> Spares() const;

  // Nothing depends on the numerics class of earlier members any more.
  void ForgetNumerics();

  const std::map<WorkerId, EnrolledWorker>& workers() const { return workers_; }

 private:
  const int32_t num_experts_;
  const int32_t num_layers_;
  std::map<WorkerId, EnrolledWorker> workers_;
  std::optional<NumericsClass> numerics_;  // Of the first member
};

// For people: "backend cpu, numerics 1, checkpoint 0a1b..., version 0.1.0".
std::string Describe(const NumericsClass& numerics);

}  // namespace shoal
