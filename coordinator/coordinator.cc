#include "coordinator/coordinator.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "coordinator/cell.h"
#include "coordinator/fleet.h"
#include "coordinator/masks.h"
#include "coordinator/requests.h"
#include "coordinator/schedule/admission.h"

namespace shoal {

// What happens, in the order of the code: an event is handled (On...), which may end sequences and
// epochs; then Settle() collects who has departed, gives homes to those who wait, and lets every
// cell take its next step.
class Coordinator::Impl : public CellListener {
 public:
  explicit Impl(const CoordinatorOptions& options)
      : fleet_(options),
        requests_(options.retention, options.max_retained),
        masks_(options.mask_patience) {
    CHECK_GT(options.max_positions, 0);
    CHECK_GT(options.max_rows, 0);
    CHECK_GT(options.prefill_chunk, 0);
    CHECK_GT(options.workers_per_cell, 0);
    CHECK_GT(options.pipeline_depth, 0);
    CHECK_LE(options.pipeline_depth, 2);
  }

  void Handle(absl::Time now, const Event& event, std::vector<Action>* actions) {
    fleet_.now = now;
    fleet_.actions = actions;
    std::visit([this](const auto& e) { On(e); }, event);
    CheckTimes();
    Settle();
    fleet_.actions = nullptr;
  }

  absl::Time NextDeadline() const;
  FleetStatus Status(absl::Time now) const;

 private:
  // Clients.
  void On(const RequestArrived& event);
  void On(const ClientAttached& event);
  void On(const ClientGone& event);
  void On(const CancelAsked& event);
  void On(const StopFound& event);
  void On(const MaskReady& event);
  absl::Status CheckRequest(const Request& request) const;
  void Queue(Request request, StreamId stream);
  void FinishAll(FinishReason reason, RequestState* request);
  void Finish(FinishReason reason, absl::Status error, RequestState* request, int32_t choice);

  // Workers.
  void On(const WorkerEnrolled& event);
  void On(const WorkerSaid& event);
  void On(const WorkerLost& event);

  void On(const Tick&) {}

  void Dismiss(const Enrol& enrol, const absl::Status& reason);
  void Expel(WorkerId worker, const std::string& why);
  void Lose(WorkerId worker, const std::string& why);
  void FormCells();
  Cell* CellOf(WorkerId worker);

  // Cells.
  void OnToken(Sequence* sequence, const SampledToken& token) override;
  void OnLogits(Sequence* sequence, const LogitRows& rows) override;
  void OnRejected(Sequence* sequence, const absl::Status& why) override;

  // After every event.
  void CheckTimes();
  void Settle();
  void CollectDeparted();
  void AdmitWaiting();
  bool IsHeldBack(const Sequence& sequence) const;
  bool CanNeverRun(const Sequence& sequence) const;
  void Erase(Sequence* sequence);
  std::vector<const Scheduler*> Homes() const;
  std::string WhyNotRunning() const;

  Fleet fleet_;
  Requests requests_;
  Masks masks_;
  std::map<CellId, Cell> cells_;
  std::map<SequenceId, Sequence> sequences_;  // Unfinished, or with rows in flight
  std::set<SequenceId> waiting_;              // By age: who was preempted keeps its place
  int64_t num_accepted_ = 0;
  int64_t num_refused_ = 0;
  int64_t num_finished_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_cached_tokens_ = 0;
  int64_t num_output_tokens_ = 0;
};

// ---- Clients

void Coordinator::Impl::On(const RequestArrived& event) {
  const Request& request = event.request;
  if (RequestState* known = requests_.Find(request.tenant, request.id); known != nullptr) {
    absl::Status status;
    if (known->request.body_hash != request.body_hash) {
      status = absl::AlreadyExistsError(absl::StrCat(
          "request id ", request.id, " is in use by a request with another body; choose another"));
    } else if (request.wants_prompt_logits) {
      status = absl::FailedPreconditionError("logits are not kept; send them under a new id");
    }
    if (status.ok()) {
      requests_.Attach(event.stream, -1, 0, known, fleet_.actions);
    } else {
      fleet_.actions->push_back(Refuse{event.stream, status});
    }
    return;
  }
  if (const absl::Status status = CheckRequest(request); !status.ok()) {
    ++num_refused_;
    fleet_.actions->push_back(Refuse{event.stream, status});
    return;
  }
  Queue(request, event.stream);
}

absl::Status Coordinator::Impl::CheckRequest(const Request& request) const {
  const Demand demand{.prompt_tokens = static_cast<int32_t>(request.prompt.size()),
                      .max_tokens = request.max_tokens,
                      .num_choices = request.num_choices,
                      .wants_prompt_logits = request.wants_prompt_logits};
  absl::Status status = CheckDemand(demand, fleet_.options.max_positions);
  if (status.ok()) status = CheckMemory(demand, Homes());
  if (!status.ok()) return status;
  if (request.deadline <= fleet_.now) {
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  const int64_t waiting = static_cast<int64_t>(waiting_.size());
  if (waiting + request.num_choices <= fleet_.options.max_waiting) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      waiting, " sequences wait already, at most ", fleet_.options.max_waiting, WhyNotRunning()));
}

void Coordinator::Impl::Queue(Request request, StreamId stream) {
  const std::vector<TokenId> prompt = request.prompt;
  RequestState* const state = requests_.Add(fleet_.now, std::move(request));
  ++num_accepted_;
  num_prompt_tokens_ += state->prompt_tokens;
  requests_.Attach(stream, -1, 0, state, fleet_.actions);
  // Without a running cell it is not known whether the request can be finished at all.
  if (!Homes().empty()) requests_.Announce(state, fleet_.actions);
  for (int32_t c = 0; c < state->request.num_choices; ++c) {
    const SequenceId id = fleet_.NextSequence();
    state->choices[static_cast<size_t>(c)].sequence = id;
    const Sequence& sequence = sequences_[id] = NewSequence(id, *state, c, prompt);
    if (sequence.is_constrained) masks_.Ask(fleet_.now, sequence, fleet_.actions);
    waiting_.insert(id);
  }
}

void Coordinator::Impl::On(const ClientAttached& event) {
  RequestState* const request = requests_.Find(event.tenant, event.request_id);
  absl::Status status;
  if (request == nullptr) {
    status = absl::NotFoundError(
        absl::StrCat("request ", event.request_id, " is not known, or no longer kept"));
  } else if (request->request.wants_prompt_logits) {
    status = absl::FailedPreconditionError("logits are not kept; send the request again");
  } else if (event.choice < -1 || event.choice >= request->request.num_choices) {
    status = absl::InvalidArgumentError(absl::StrCat(
        "choice ", event.choice, " of a request with n = ", request->request.num_choices));
  } else if (event.next_index < 0) {
    status = absl::InvalidArgumentError(
        absl::StrCat("next_index must not be negative, got ", event.next_index));
  }
  if (!status.ok()) {
    fleet_.actions->push_back(Refuse{event.stream, status});
    return;
  }
  requests_.Attach(event.stream, event.choice, event.next_index, request, fleet_.actions);
}

void Coordinator::Impl::On(const ClientGone& event) {
  RequestState* const request = requests_.OfReader(event.stream);
  requests_.Detach(event.stream);
  if (request == nullptr || !request->readers.empty()) return;
  if (event.keep) {
    requests_.Park(fleet_.now, request);
  } else if (!request->is_kept) {
    FinishAll(FinishReason::kCancelled, request);
  }
}

void Coordinator::Impl::On(const CancelAsked& event) {
  RequestState* const request = requests_.Find(event.tenant, event.request_id);
  if (request != nullptr && !request->is_finished()) FinishAll(FinishReason::kCancelled, request);
}

void Coordinator::Impl::On(const StopFound& event) {
  RequestState* const request = requests_.Find(event.tenant, event.request_id);
  if (request == nullptr || event.choice < 0 || event.choice >= request->request.num_choices) {
    return;
  }
  Choice& choice = request->choices[static_cast<size_t>(event.choice)];
  const size_t length = static_cast<size_t>(std::max(0, event.last_index + 1));
  if (choice.output.size() > length) choice.output.resize(length);
  if (!choice.is_finished) {
    Finish(FinishReason::kStopString, absl::OkStatus(), request, event.choice);
    return;
  }
  // It ended on its own a moment earlier; later readers hear where the text layer ended it.
  choice.reason = FinishReason::kStopString;
  choice.stop_token.reset();
  choice.usage.completion_tokens = static_cast<int32_t>(choice.output.size());
}

void Coordinator::Impl::On(const MaskReady& event) {
  const auto found = sequences_.find(event.sequence);
  if (found == sequences_.end() || found->second.state == SequenceState::kEnded) return;
  Sequence& sequence = found->second;
  if (!masks_.Answer(event, &sequence) || event.status.ok()) return;
  RequestState* const request = requests_.At(sequence.request);
  Finish(FinishReason::kError, event.status, request, sequence.choice);
}

void Coordinator::Impl::FinishAll(FinishReason reason, RequestState* request) {
  const uint64_t number = request->number;
  absl::Status error;
  if (reason == FinishReason::kDeadline) {
    error =
        absl::DeadlineExceededError(absl::StrCat("the request's deadline passed", WhyNotRunning()));
  }
  const int32_t num_choices = request->request.num_choices;
  for (int32_t c = 0; c < num_choices; ++c) {
    RequestState* const state = requests_.At(number);
    if (state == nullptr) return;  // The last unfinished choice ended it
    if (!state->choices[static_cast<size_t>(c)].is_finished) Finish(reason, error, state, c);
  }
}

void Coordinator::Impl::Finish(FinishReason reason,
                               absl::Status error,
                               RequestState* request,
                               int32_t c) {
  Choice& choice = request->choices[static_cast<size_t>(c)];
  Sequence& sequence = sequences_.at(choice.sequence);
  if (sequence.epoch_mark >= 0) cells_.at(sequence.cell).CountEpochs(&sequence);
  choice.timings.preemptions = sequence.preemptions;
  choice.timings.epochs = sequence.epochs;
  if (request->num_unfinished == 1) ++num_finished_;
  masks_.Forget(sequence.id);
  requests_.Finish(fleet_.now, reason, std::move(error), request, c, fleet_.actions);
  if (sequence.state != SequenceState::kWaiting) {
    cells_.at(sequence.cell).End(&sequence);
    return;
  }
  sequence.state = SequenceState::kEnded;
  // One that has departed in this very event is not in the queue yet: CollectDeparted() erases it.
  if (waiting_.erase(sequence.id) > 0) Erase(&sequence);
}

// ---- Workers

void Coordinator::Impl::On(const WorkerEnrolled& event) {
  const Enrol& enrol = event.enrol;
  if (fleet_.roster.Find(enrol.worker, enrol.incarnation) != nullptr) {
    Lose(enrol.worker, "its link was dialled again");
  }
  if (fleet_.roster.workers().empty() && requests_.size() == 0) {
    fleet_.roster.ForgetNumerics();
  }
  if (const absl::Status status = fleet_.roster.Add(fleet_.now, enrol); !status.ok()) {
    Dismiss(enrol, status);
    return;
  }
  // Workers remember the terms of earlier coordinators; ours has to be the highest.
  const bool is_first = fleet_.roster.workers().size() == 1 && cells_.empty();
  if (enrol.highest_term > fleet_.term() || (is_first && enrol.highest_term == fleet_.term())) {
    fleet_.RaiseTerm(Term{enrol.highest_term.value + 1});
    fleet_.Say(absl::StrCat("term ", fleet_.term().value, ", above what workers have seen"));
  }
  fleet_.Send(enrol.worker,
              Welcome{.term = fleet_.term(), .coordinator = fleet_.options.incarnation});
  fleet_.Say(absl::StrCat("worker ", enrol.worker.value, " enrolled from ", enrol.host));
  FormCells();
}

void Coordinator::Impl::Dismiss(const Enrol& enrol, const absl::Status& reason) {
  fleet_.Say(absl::StrCat(
      "worker ", enrol.worker.value, " on ", enrol.host, " dismissed: ", reason.ToString()));
  fleet_.actions->push_back(SendToWorker{
      enrol.worker, enrol.incarnation, shoal::Dismiss{.term = fleet_.term(), .reason = reason}});
  fleet_.actions->push_back(CloseLink{enrol.worker, enrol.incarnation});
}

void Coordinator::Impl::On(const WorkerSaid& event) {
  EnrolledWorker* const worker = fleet_.roster.Find(event.worker, event.incarnation);
  if (worker == nullptr) return;  // Said before it was lost
  worker->last_heard = fleet_.now;
  if (const Beat* beat = std::get_if<Beat>(&event.message)) worker->beat = *beat;
  Cell* const cell = CellOf(event.worker);
  if (cell == nullptr) return;
  if (const auto* loaded = std::get_if<ExpertsLoaded>(&event.message)) {
    const absl::Status status = cell->OnExpertsLoaded(event.worker, *loaded);
    if (status.ok()) return;
    const Enrol enrol = worker->enrol;
    Dismiss(enrol, status);
    Lose(event.worker, "it cannot load its share");
  } else if (const auto* bootstrap = std::get_if<Bootstrap>(&event.message)) {
    cell->OnBootstrap(event.worker, *bootstrap);
  } else if (const auto* ready = std::get_if<Ready>(&event.message)) {
    cell->OnReady(event.worker, *ready);
  } else if (const auto* result = std::get_if<StepResult>(&event.message)) {
    cell->OnStepResult(event.worker, *result);
  } else if (const auto* refusal = std::get_if<Refusal>(&event.message)) {
    // A worker that obeys someone else, or whose record disagrees with ours, begins anew.
    if (refusal->term > fleet_.term() || absl::IsDataLoss(refusal->reason)) {
      Expel(event.worker, absl::StrCat("it refused: ", refusal->reason.ToString()));
    } else {
      cell->OnRefusal(event.worker, *refusal);
    }
  }
}

void Coordinator::Impl::On(const WorkerLost& event) {
  if (fleet_.roster.Find(event.worker, event.incarnation) == nullptr) return;
  Lose(event.worker, event.why);
}

// Nobody but the coordinator decides who is dead: a worker whose link is up is told by its end.
void Coordinator::Impl::Expel(WorkerId worker, const std::string& why) {
  fleet_.actions->push_back(CloseLink{worker, fleet_.roster.At(worker).enrol.incarnation});
  Lose(worker, why);
}

void Coordinator::Impl::Lose(WorkerId worker, const std::string& why) {
  fleet_.Say(absl::StrCat("worker ", worker.value, " lost: ", why));
  Cell* const cell = CellOf(worker);
  fleet_.roster.Remove(worker);
  if (cell != nullptr) cell->Leave(worker);
  for (auto& [id, sequence] : sequences_) {
    // Its records are gone, or will be by the time it enrols again.
    sequence.record_holders.erase(worker);
    if (sequence.home == worker) sequence.is_record_current = false;
  }
  FormCells();
}

// Cells that lack workers take spares first; what is left forms new cells.
void Coordinator::Impl::FormCells() {
  std::vector<WorkerId> spares = fleet_.roster.Spares();
  const size_t size = static_cast<size_t>(fleet_.options.workers_per_cell);
  auto next = spares.begin();
  for (auto& [id, cell] : cells_) {
    for (; next != spares.end() && cell.workers().size() < size; ++next) cell.Join(*next);
  }
  while (next != spares.end()) {
    // The first cell is there from the first worker on, so that status can say what it lacks.
    if (!cells_.empty() && static_cast<size_t>(spares.end() - next) < size) return;
    const CellId id{static_cast<uint32_t>(cells_.size())};
    Cell& cell = cells_.try_emplace(id, id, &fleet_, this).first->second;
    for (; next != spares.end() && cell.workers().size() < size; ++next) cell.Join(*next);
  }
}

Cell* Coordinator::Impl::CellOf(WorkerId worker) {
  const std::optional<CellId> cell = fleet_.roster.At(worker).cell;
  return cell.has_value() ? &cells_.at(*cell) : nullptr;
}

// ---- Cells

void Coordinator::Impl::OnToken(Sequence* sequence, const SampledToken& sampled) {
  RequestState* const request = requests_.At(sequence->request);
  CHECK(request != nullptr);
  if (sampled.token.value < 0) {
    Finish(FinishReason::kError,
           absl::DataLossError(absl::StrCat(
               "no token can be sampled at position ", sampled.position, ": every logit is NaN")),
           request,
           sequence->choice);
    return;
  }
  CHECK_EQ(sampled.position, sequence->length());
  Choice& choice = request->choices[static_cast<size_t>(sequence->choice)];
  const int32_t num_before = static_cast<int32_t>(choice.output.size());
  sequence->tokens.push_back(sampled.token);
  choice.output.push_back({sampled.token, sampled.logprob, sampled.top});
  ++num_output_tokens_;
  if (num_before == 0) choice.timings.first_token = fleet_.now - request->arrival;

  const std::vector<TokenId>& stops = sequence->sampling.stop_tokens;
  const bool is_stop = !request->request.ignore_eos &&
                       num_before >= sequence->sampling.min_tokens &&
                       std::binary_search(stops.begin(), stops.end(), sampled.token);
  if (is_stop) {
    choice.stop_token = sampled.token;
    Finish(FinishReason::kStop, absl::OkStatus(), request, sequence->choice);
  } else if (sequence->length() >= sequence->max_length) {
    Finish(FinishReason::kLength, absl::OkStatus(), request, sequence->choice);
  } else {
    requests_.Deliver(request, sequence->choice, fleet_.actions);
    if (sequence->is_constrained) masks_.Ask(fleet_.now, *sequence, fleet_.actions);
    const bool keeps_mask = fleet_.options.planted_bug == PlantedBug::kKeepMask;
    if (keeps_mask) sequence->mask_length = sequence->length();
  }
}

void Coordinator::Impl::OnLogits(Sequence* sequence, const LogitRows& rows) {
  RequestState* const request = requests_.At(sequence->request);
  CHECK(request != nullptr);
  requests_.DeliverLogits(request, rows, fleet_.actions);
  if (request->logits_emitted < sequence->prompt_length) return;
  Finish(FinishReason::kLength, absl::OkStatus(), request, sequence->choice);
}

void Coordinator::Impl::OnRejected(Sequence* sequence, const absl::Status& why) {
  RequestState* const request = requests_.At(sequence->request);
  CHECK(request != nullptr);
  Finish(FinishReason::kError, why, request, sequence->choice);
}

// ---- After every event

void Coordinator::Impl::CheckTimes() {
  for (const Requests::Overdue& overdue : requests_.Expire(fleet_.now)) {
    FinishAll(overdue.reason, requests_.At(overdue.request));
  }
  for (const SequenceId sequence : masks_.Overdue(fleet_.now)) {
    masks_.Ask(fleet_.now, sequences_.at(sequence), fleet_.actions);
  }
  const absl::Duration beat_deadline = fleet_.options.beat_deadline;
  for (const WorkerId worker : fleet_.roster.SilentSince(fleet_.now - beat_deadline)) {
    Expel(worker, absl::StrCat("silent for ", absl::FormatDuration(beat_deadline)));
  }
  for (auto& [id, cell] : cells_) {
    for (const WorkerId worker : cell.Overdue()) Expel(worker, "it kept its cell waiting");
  }
}

void Coordinator::Impl::Settle() {
  const bool is_serving = !Homes().empty();
  for (auto& [id, cell] : cells_) {
    if (is_serving && cell.is_stuck()) cell.EvictAll();
  }
  CollectDeparted();
  AdmitWaiting();
  for (auto& [id, cell] : cells_) cell.Advance();
  CollectDeparted();
}

void Coordinator::Impl::CollectDeparted() {
  for (auto& [id, cell] : cells_) {
    for (Sequence* sequence : cell.TakeDeparted()) {
      if (sequence->state == SequenceState::kEnded) {
        Erase(sequence);
      } else {
        waiting_.insert(sequence->id);
      }
    }
  }
}

// In order of age. The first one that finds no room ends the round: who came later does not
// overtake it.
void Coordinator::Impl::AdmitWaiting() {
  std::vector<std::pair<Cell*, size_t>> places;
  for (auto& [id, cell] : cells_) {
    for (size_t home = 0; home < cell.homes().size(); ++home) places.emplace_back(&cell, home);
  }
  if (places.empty()) return;
  const std::vector<const Scheduler*> homes = Homes();
  const std::vector<SequenceId> waiting(waiting_.begin(), waiting_.end());
  for (const SequenceId id : waiting) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end() || IsHeldBack(found->second)) continue;
    Sequence& sequence = found->second;
    RequestState* const request = requests_.At(sequence.request);
    if (CanNeverRun(sequence)) {
      const Demand demand{.prompt_tokens = sequence.prompt_length,
                          .max_tokens = sequence.max_length - sequence.prompt_length,
                          .wants_prompt_logits = sequence.wants_prompt_logits};
      Finish(FinishReason::kError, CheckMemory(demand, homes), request, sequence.choice);
      continue;
    }
    const std::optional<size_t> home = ChooseHome(sequence, homes);
    if (!home.has_value()) return;
    requests_.Announce(request, fleet_.actions);
    Choice& choice = request->choices[static_cast<size_t>(sequence.choice)];
    waiting_.erase(id);
    places[*home].first->Admit(places[*home].second, &sequence);
    if (choice.timings.queue == absl::ZeroDuration() && choice.output.empty()) {
      choice.timings.queue = fleet_.now - request->arrival;
      choice.usage.cached_tokens = std::min(sequence.computed, sequence.prompt_length);
      num_cached_tokens_ += choice.usage.cached_tokens;
    }
  }
}

// The later choices of a request wait until the first has computed the prompt that they share.
bool Coordinator::Impl::IsHeldBack(const Sequence& sequence) const {
  if (sequence.choice == 0 || !sequence.uses_prefix_cache || !fleet_.options.prefix_cache) {
    return false;
  }
  if (sequence.prompt_length <= kPlanBlockTokens) return false;
  const auto first =
      sequences_.find(SequenceId{sequence.id.value - static_cast<uint64_t>(sequence.choice)});
  return first != sequences_.end() && first->second.state != SequenceState::kEnded &&
         first->second.length() == first->second.prompt_length;
}

// No rank of a complete fleet could hold it: found out only now, since memory was not known when it
// came, or has shrunk.
bool Coordinator::Impl::CanNeverRun(const Sequence& sequence) const {
  for (const auto& [id, cell] : cells_) {
    const size_t size = static_cast<size_t>(fleet_.options.workers_per_cell);
    if (!cell.is_running() || cell.workers().size() < size) return false;
    for (const Scheduler* home : cell.homes()) {
      if (home->space().CouldEverHold(sequence.max_positions())) return false;
    }
  }
  return true;
}

void Coordinator::Impl::Erase(Sequence* sequence) {
  CHECK(sequence->state == SequenceState::kEnded);
  for (const WorkerId worker : sequence->record_holders) {
    if (Cell* cell = CellOf(worker)) cell->Forget(worker, sequence->id);
  }
  sequences_.erase(sequence->id);
}

std::vector<const Scheduler*> Coordinator::Impl::Homes() const {
  std::vector<const Scheduler*> homes;
  for (const auto& [id, cell] : cells_) {
    for (const Scheduler* home : cell.homes()) homes.push_back(home);
  }
  return homes;
}

std::string Coordinator::Impl::WhyNotRunning() const {
  if (!Homes().empty()) return "";
  if (cells_.empty()) return "; no worker has enrolled";
  const std::string& why = cells_.begin()->second.why_waiting();
  return why.empty() ? "; the fleet is not ready yet" : absl::StrCat("; ", why);
}

absl::Time Coordinator::Impl::NextDeadline() const {
  absl::Time next = std::min(requests_.NextDeadline(), masks_.NextDeadline());
  next = std::min(next, fleet_.roster.OldestWord() + fleet_.options.beat_deadline);
  for (const auto& [id, cell] : cells_) next = std::min(next, cell.NextDeadline());
  return next;
}

FleetStatus Coordinator::Impl::Status(absl::Time now) const {
  FleetStatus status{.term = fleet_.term()};
  for (const auto& [id, cell] : cells_) {
    status.cells.push_back(cell.Status(now));
    status.epochs += cell.num_epochs();
    status.preemptions += cell.num_preemptions();
    status.is_ready = status.is_ready || cell.is_running();
  }
  for (const WorkerId worker : fleet_.roster.Spares()) {
    status.spare_workers.push_back(fleet_.Describe(worker, now));
  }
  status.waiting = static_cast<int32_t>(waiting_.size());
  status.running = static_cast<int32_t>(sequences_.size() - waiting_.size());
  status.retained = requests_.num_retained();
  status.accepted = num_accepted_;
  status.refused = num_refused_;
  status.finished = num_finished_;
  status.prompt_tokens = num_prompt_tokens_;
  status.cached_tokens = num_cached_tokens_;
  status.output_tokens = num_output_tokens_;
  return status;
}

Coordinator::Coordinator(const CoordinatorOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}

Coordinator::~Coordinator() = default;

void Coordinator::Handle(absl::Time now, const Event& event, std::vector<Action>* actions) {
  impl_->Handle(now, event, actions);
}

absl::Time Coordinator::NextDeadline() const {
  return impl_->NextDeadline();
}

FleetStatus Coordinator::Status(absl::Time now) const {
  return impl_->Status(now);
}

}  // namespace shoal
