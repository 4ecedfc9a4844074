#include "coordinator/cell.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"

namespace shoal {
namespace {

// Time per row before anything was measured: a slow CPU with a big model.
constexpr absl::Duration kAssumedRowTime = absl::Milliseconds(10);
// Ready may come so many times later than the exchange's deadline: a worker first makes room for
// the epoch, gigabytes of it perhaps, and one that hangs whole is noticed by its missing beats.
constexpr int kReadyGrace = 3;

// Pause after an epoch that ended badly, doubled each time: a dead peer's broken link is reported
// a little later than the exchange that it broke.
constexpr absl::Duration kFirstRetryPause = absl::Milliseconds(50);
constexpr absl::Duration kMaxRetryPause = absl::Seconds(2);
// A worker named by failing ranks in so many epochs in a row is lost.
constexpr int kMaxAccusations = 4;

}  // namespace

Cell::Cell(CellId id, Fleet* fleet, CellListener* listener)
    : id_(id), fleet_(fleet), listener_(listener), row_time_(kAssumedRowTime) {}

std::set<ExpertId> Cell::Layout::Share(size_t rank) const {
  std::set<ExpertId> share;
  for (size_t e = 0; e < placement.size(); ++e) {
    const std::vector<int32_t>& holders = placement[e];
    if (std::binary_search(holders.begin(), holders.end(), static_cast<int32_t>(rank))) {
      share.insert(ExpertId{static_cast<int32_t>(e)});
    }
  }
  return share;
}

// ---- Membership

void Cell::Join(WorkerId worker) {
  CHECK(workers_.insert(worker).second);
  fleet_->roster.At(worker).cell = id_;
  Retarget();
}

void Cell::Leave(WorkerId worker) {
  CHECK_EQ(workers_.erase(worker), 1u);
  accusations_.erase(worker);
  if (RankOf(worker).has_value()) {
    if (state_ != EpochState::kNone) EndEpoch();
    retry_at_ = fleet_->now;  // Whatever went wrong before, this was the reason
  }
  if (const auto home = homes_.find(worker); home != homes_.end()) {
    home->second.scheduler->Evict();
    for (Sequence* s : home->second.scheduler->TakeDeparted()) departed_.push_back(s);
    num_past_preemptions_ += home->second.scheduler->num_preemptions();
    homes_.erase(home);
  }
  Retarget();
}

void Cell::Retarget() {
  target_.reset();
  if (state_ == EpochState::kConfiguring) return;  // Its end or its first step will ask again
  std::optional<Layout> best = BestLayout();
  if (!best.has_value()) return;
  if (state_ == EpochState::kRunning && *best == layout_) return;
  target_ = std::move(best);
  AskLoads();
}

std::optional<Cell::Layout> Cell::BestLayout() {
  const CoordinatorOptions& options = fleet_->options;
  std::vector<WorkerId> veterans;  // Who can serve without loading first, or after loading little
  for (const WorkerId worker : workers_) {
    if (homes_.contains(worker)) veterans.push_back(worker);
  }
  const std::vector<WorkerId> all(workers_.begin(), workers_.end());
  const size_t needed =
      static_cast<size_t>(has_run_ ? options.min_workers : options.workers_per_cell);
  if (state_ == EpochState::kNone && has_run_ && veterans.size() >= needed) {
    absl::StatusOr<Layout> urgent = Place(veterans, PlacementGoal::kUrgent);
    if (urgent.ok()) return *std::move(urgent);
  }
  if (all.size() < needed) {
    why_waiting_ = absl::StrCat(all.size(), " of ", needed, " workers are here");
    return std::nullopt;
  }
  absl::StatusOr<Layout> balanced = Place(all, PlacementGoal::kBalanced);
  if (balanced.ok()) return *std::move(balanced);
  why_waiting_ = std::string(balanced.status().message());
  return std::nullopt;
}

absl::StatusOr<Cell::Layout> Cell::Place(const std::vector<WorkerId>& ranks,
                                         PlacementGoal goal) const {
  std::vector<PlacementSite> sites;
  for (const WorkerId id : ranks) {
    const EnrolledWorker& worker = fleet_->roster.At(id);
    sites.push_back({worker.enrol.host, worker.max_experts, worker.held});
  }
  ASSIGN_OR_RETURN(
      Placement placement,
      PlaceExperts(sites, fleet_->options.num_experts, fleet_->options.expert_copies, goal));
  return Layout{ranks, std::move(placement)};
}

void Cell::AskLoads() {
  const uint64_t version = fleet_->NextPlacementVersion();
  for (size_t rank = 0; rank < target_->ranks.size(); ++rank) {
    const WorkerId id = target_->ranks[rank];
    EnrolledWorker& worker = fleet_->roster.At(id);
    std::set<ExpertId> share = target_->Share(rank);
    const bool has_all =
        std::includes(worker.held.begin(), worker.held.end(), share.begin(), share.end());
    if (worker.has_loaded && has_all) continue;
    if (worker.asked_version != 0 && worker.asked == share) continue;
    fleet_->Send(id,
                 LoadExperts{.term = fleet_->term(),
                             .cell = id_,
                             .placement_version = version,
                             .experts = {share.begin(), share.end()}});
    worker.asked = std::move(share);
    worker.asked_version = version;
  }
}

bool Cell::IsLoaded(const Layout& layout) const {
  for (size_t rank = 0; rank < layout.ranks.size(); ++rank) {
    const EnrolledWorker& worker = fleet_->roster.At(layout.ranks[rank]);
    const std::set<ExpertId> share = layout.Share(rank);
    if (!worker.has_loaded) return false;
    if (!std::includes(worker.held.begin(), worker.held.end(), share.begin(), share.end())) {
      return false;
    }
  }
  return true;
}

absl::Status Cell::OnExpertsLoaded(WorkerId id, const ExpertsLoaded& message) {
  EnrolledWorker& worker = fleet_->roster.At(id);
  if (message.cell != id_ || message.placement_version != worker.asked_version) {
    return absl::OkStatus();  // The answer to a request that another one has replaced
  }
  worker.asked_version = 0;
  const std::set<ExpertId> asked = std::exchange(worker.asked, {});
  if (!message.status.ok()) {
    fleet_->Say(absl::StrCat("worker ",
                             id.value,
                             " could not load ",
                             asked.size(),
                             " experts: ",
                             message.status.ToString()));
    if (!worker.has_loaded) return message.status;
    worker.max_experts = static_cast<int32_t>(worker.held.size());
    Retarget();
    return absl::OkStatus();
  }
  worker.held.insert(asked.begin(), asked.end());
  worker.has_loaded = true;
  worker.num_full_blocks = message.num_full_blocks;
  worker.num_window_blocks = message.num_window_blocks;
  return absl::OkStatus();
}

// ---- Epochs

void Cell::Configure() {
  CHECK(steps_.empty());
  layout_ = *std::exchange(target_, std::nullopt);
  state_ = EpochState::kConfiguring;
  epoch_ = fleet_->NextEpoch();
  ++num_epochs_;
  ready_.clear();
  configure_deadline_ = fleet_->now + kReadyGrace * fleet_->options.epoch_deadline;
  BuildHomes();

  shoal::Configure message{
      .term = fleet_->term(),
      .cell = id_,
      .epoch = epoch_,
      .next_step = fleet_->NextStep(last_step_),
      .placement_version = fleet_->NextPlacementVersion(),
      .max_rows = fleet_->options.max_rows,
      .deadline_ms = absl::ToInt64Milliseconds(fleet_->options.epoch_deadline)};
  for (const WorkerId id : layout_.ranks) {
    const Enrol& enrol = fleet_->roster.At(id).enrol;
    message.members.push_back({id, enrol.incarnation, enrol.exchange_endpoint, enrol.host});
  }
  for (uint8_t& byte : message.key) byte = static_cast<uint8_t>(fleet_->prng.Next() >> 56);
  for (const std::vector<int32_t>& holders : layout_.placement) {
    std::vector<Rank>& ranks = message.placement.emplace_back();
    for (const int32_t holder : holders) ranks.push_back(Rank{holder});
  }
  for (size_t rank = 0; rank < layout_.ranks.size(); ++rank) {
    EnrolledWorker& worker = fleet_->roster.At(layout_.ranks[rank]);
    // The rest it may drop as soon as it is ready, which it may be before we hear of it.
    worker.held = layout_.Share(rank);
    message.rank = Rank{static_cast<int32_t>(rank)};
    const KvSpace& space = homes_.at(layout_.ranks[rank]).scheduler->space();
    message.num_full_blocks = space.full().num_blocks();
    message.num_window_blocks = space.window_blocks().num_blocks();
    fleet_->Send(layout_.ranks[rank], message);
  }
  fleet_->Say(absl::StrCat(
      "cell ", id_.value, ": epoch ", epoch_.value, " with ", layout_.ranks.size(), " workers"));
}

// Every rank of the layout gets a home. One whose worker has fewer blocks than before begins anew;
// more are taken up when there is nothing to lose by it.
void Cell::BuildHomes() {
  const CoordinatorOptions& options = fleet_->options;
  for (const WorkerId id : layout_.ranks) {
    const EnrolledWorker& worker = fleet_->roster.At(id);
    Home& home = homes_[id];
    if (home.scheduler != nullptr) {
      home.scheduler->RewindAll();
      const int32_t full = home.scheduler->space().full().num_blocks();
      const int32_t window = home.scheduler->space().window_blocks().num_blocks();
      const bool fits = full <= worker.num_full_blocks && window <= worker.num_window_blocks;
      const bool is_equal = full == worker.num_full_blocks && window == worker.num_window_blocks;
      if (is_equal || (fits && home.scheduler->num_sequences() > 0)) continue;
      home.scheduler->Evict();
      for (Sequence* s : home.scheduler->TakeDeparted()) departed_.push_back(s);
      num_past_preemptions_ += home.scheduler->num_preemptions();
    }
    home.scheduler =
        std::make_unique<Scheduler>(SchedulerLimits{.max_rows = options.max_rows,
                                                    .prefill_chunk = options.prefill_chunk,
                                                    .max_running = options.max_running,
                                                    .prefix_cache = options.prefix_cache,
                                                    .window = options.sliding_window,
                                                    .planted_bug = options.planted_bug},
                                    worker.num_full_blocks,
                                    worker.num_window_blocks);
  }
}

void Cell::OnBootstrap(WorkerId worker, const Bootstrap& message) {
  if (state_ != EpochState::kConfiguring || message.epoch != epoch_) return;
  if (worker != layout_.ranks.front()) return;
  for (size_t rank = 1; rank < layout_.ranks.size(); ++rank) {
    fleet_->Send(layout_.ranks[rank],
                 Bootstrap{.term = fleet_->term(), .cell = id_, .epoch = epoch_, .id = message.id});
  }
}

void Cell::OnReady(WorkerId worker, const Ready& message) {
  if (state_ != EpochState::kConfiguring || message.epoch != epoch_) return;
  if (!message.status.ok()) {
    FailEpoch(
        absl::StrCat(
            "worker ", worker.value, " could not build the exchange: ", message.status.ToString()),
        message.suspects);
    return;
  }
  ready_.insert(worker);
  if (ready_.size() < layout_.ranks.size()) return;
  state_ = EpochState::kRunning;
  has_run_ = true;
  why_waiting_.clear();
  Retarget();
}

// The survivors leave the epoch; what was in flight has not happened.
void Cell::EndEpoch() {
  CHECK(state_ != EpochState::kNone);
  state_ = EpochState::kNone;
  for (size_t rank = 0; rank < layout_.ranks.size(); ++rank) {
    const WorkerId id = layout_.ranks[rank];
    if (!workers_.contains(id)) continue;
    fleet_->Send(id, Abort{.term = fleet_->term(), .cell = id_, .epoch = epoch_});
    Home& home = homes_.at(id);
    for (const StepInFlight& step : steps_) {
      const std::vector<SequenceId>& untold = step.parts[rank].forget;
      home.forget.insert(home.forget.end(), untold.begin(), untold.end());
    }
    home.scheduler->RewindAll();
  }
  steps_.clear();
}

void Cell::FailEpoch(const std::string& why, const std::vector<Rank>& suspects) {
  EndEpoch();
  for (const Rank suspect : suspects) {
    const size_t rank = static_cast<size_t>(suspect.value);
    if (suspect.value < 0 || rank >= layout_.ranks.size()) continue;
    if (workers_.contains(layout_.ranks[rank])) ++accusations_[layout_.ranks[rank]];
  }
  const int doublings = std::min(num_failures_++, 10);
  retry_at_ = fleet_->now + std::min(kFirstRetryPause * (1 << doublings), kMaxRetryPause);
  fleet_->Say(absl::StrCat("cell ", id_.value, ": epoch ", epoch_.value, " ended: ", why));
  Retarget();
}

void Cell::OnRefusal(WorkerId worker, const Refusal& message) {
  if (state_ == EpochState::kNone || !RankOf(worker).has_value()) return;
  // About a message of an epoch that is over, or one that came late or twice: harms nobody.
  if (message.epoch < epoch_) return;
  if (message.epoch == epoch_ && absl::IsAborted(message.reason)) return;
  fleet_->SkipEpochs(message.epoch);
  FailEpoch(absl::StrCat("worker ", worker.value, " refused: ", message.reason.ToString()), {});
}

std::vector<WorkerId> Cell::Overdue() {
  std::vector<WorkerId> lost;
  if (state_ == EpochState::kConfiguring && fleet_->now >= configure_deadline_) {
    for (const WorkerId worker : layout_.ranks) {
      if (!ready_.contains(worker)) lost.push_back(worker);
    }
  }
  if (state_ == EpochState::kRunning && fleet_->now >= StepDeadline()) {
    FailEpoch(absl::StrCat("step ", steps_.front().step.value, " passed its deadline"), {});
  }
  for (const auto& [worker, times] : accusations_) {
    if (times >= kMaxAccusations && !std::count(lost.begin(), lost.end(), worker)) {
      lost.push_back(worker);
    }
  }
  return lost;
}

void Cell::Advance() {
  if (IsReadyToMove()) {
    // At a step boundary: plans stop, those in flight return.
    const bool is_boundary = state_ == EpochState::kRunning && steps_.empty();
    const bool is_due = state_ == EpochState::kNone && fleet_->now >= retry_at_;
    if (is_boundary || is_due) Configure();
  }
  SendPlans();
}

absl::Time Cell::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  if (state_ == EpochState::kConfiguring) next = configure_deadline_;
  if (state_ == EpochState::kRunning) next = StepDeadline();
  if (state_ == EpochState::kNone && IsReadyToMove()) next = std::max(retry_at_, fleet_->now);
  return next;
}

std::optional<Rank> Cell::RankOf(WorkerId worker) const {
  const auto found = std::find(layout_.ranks.begin(), layout_.ranks.end(), worker);
  if (found == layout_.ranks.end()) return std::nullopt;
  return Rank{static_cast<int32_t>(found - layout_.ranks.begin())};
}

// ---- Sequences

std::vector<const Scheduler*> Cell::homes() const {
  std::vector<const Scheduler*> homes;
  if (state_ != EpochState::kRunning) return homes;
  for (const WorkerId id : layout_.ranks) homes.push_back(homes_.at(id).scheduler.get());
  return homes;
}

void Cell::Admit(size_t home, Sequence* sequence) {
  CHECK(state_ == EpochState::kRunning);
  const WorkerId id = layout_.ranks[home];
  const bool is_return = sequence->home == id && sequence->is_record_current;
  CountEpochs(sequence);
  sequence->cell = id_;
  sequence->home = id;
  sequence->is_record_current = true;
  sequence->record_holders.insert(id);
  if (!is_return) {
    fleet_->Send(id,
                 KeepRecord{.term = fleet_->term(),
                            .sequence = sequence->id,
                            .index = 0,
                            .tokens = sequence->tokens,
                            .prompt_length = sequence->prompt_length,
                            .sampling = sequence->sampling,
                            .envelope = sequence->envelope});
  }
  homes_.at(id).scheduler->Admit(sequence);
}

// Epoch changes while it waited for a new home count too; coming from another cell is one.
void Cell::CountEpochs(Sequence* sequence) const {
  if (sequence->epoch_mark >= 0) {
    const bool is_here = sequence->cell == id_;
    sequence->epochs += is_here ? static_cast<int32_t>(num_epochs_ - sequence->epoch_mark) : 1;
  }
  sequence->epoch_mark = num_epochs_;
}

void Cell::End(Sequence* sequence) {
  homes_.at(sequence->home).scheduler->End(sequence);
}

void Cell::Forget(WorkerId worker, SequenceId sequence) {
  if (const auto home = homes_.find(worker); home != homes_.end()) {
    home->second.forget.push_back(sequence);
  }
}

void Cell::EvictAll() {
  CHECK(steps_.empty());
  for (auto& [id, home] : homes_) home.scheduler->Evict();
}

std::vector<Sequence*> Cell::TakeDeparted() {
  std::vector<Sequence*> departed = std::exchange(departed_, {});
  for (auto& [id, home] : homes_) {
    for (Sequence* s : home.scheduler->TakeDeparted()) departed.push_back(s);
  }
  return departed;
}

// ---- For people

int64_t Cell::num_preemptions() const {
  int64_t num = num_past_preemptions_;
  for (const auto& [id, home] : homes_) num += home.scheduler->num_preemptions();
  return num;
}

CellStatus Cell::Status(absl::Time now) const {
  CellStatus status{.cell = id_, .epoch = epoch_, .step = last_step_};
  switch (state_) {
    case EpochState::kConfiguring:
      status.state = "configuring";
      break;
    case EpochState::kRunning:
      status.state = "running";
      break;
    case EpochState::kNone:
      if (target_.has_value()) {
        status.state = IsLoaded(*target_) ? "configuring" : "loading";
      } else {
        status.state = has_run_ ? "waiting for workers" : "forming";
      }
      break;
  }
  for (const WorkerId worker : workers_) status.workers.push_back(StatusOf(worker, now));
  status.min_replicas = state_ == EpochState::kNone ? 0 : MinReplicas(layout_.placement);
  return status;
}

WorkerStatus Cell::StatusOf(WorkerId id, absl::Time now) const {
  WorkerStatus status = fleet_->Describe(id, now);
  status.cell = id_;
  const std::optional<Rank> rank = RankOf(id);
  if (state_ != EpochState::kNone && rank.has_value()) status.rank = *rank;
  const auto found = homes_.find(id);
  if (found == homes_.end()) return status;
  const Scheduler& scheduler = *found->second.scheduler;
  status.full_blocks = scheduler.space().full().num_blocks();
  status.full_blocks_used = scheduler.space().full().num_held();
  status.full_blocks_cached = scheduler.space().full().num_cached();
  status.window_blocks = scheduler.space().window_blocks().num_blocks();
  status.window_blocks_used = scheduler.space().window_blocks().num_held();
  status.sequences = scheduler.num_sequences();
  return status;
}

}  // namespace shoal
