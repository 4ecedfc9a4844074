#include "tests/sim/simulator.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"

namespace shoal::sim {
namespace {

constexpr int64_t kBeatEvery = 50'000;
constexpr int64_t kTickEvery = 20'000;
constexpr int64_t kExpertBytes = 1'000'000;
constexpr int64_t kRestartTime = 30'000;
// Faults end at 2 s; by then plus this every request has ended.
constexpr int64_t kPatience = 200'000'000;
// Duplicated work feeds on itself; this catches the avalanche.
constexpr int64_t kEventBudget = 2'000'000;

Scene MakeScene(const RunOptions& options, Prng* prng) {
  Scene scene = DrawScene(prng);
  scene.options.planted_bug = options.bug;
  return scene;
}

}  // namespace

RunReport RunSeed(const RunOptions& options) {
  return Simulator(options).Run();
}

Simulator::Simulator(const RunOptions& options)
    : options_(options),
      prng_(options.seed),
      scene_(MakeScene(options, &prng_)),
      coordinator_(scene_.options),
      streams_([this](const std::string& what) { Violate(what); }),
      plans_(scene_.options.sliding_window, [this](const std::string& what) { Violate(what); }) {}

RunReport Simulator::Run() {
  for (int32_t w = 0; w < scene_.num_workers; ++w) {
    const WorkerId id{static_cast<uint32_t>(w)};
    hosts_[id];
    At(static_cast<Micros>(prng_.Below(5'000)), [this, id] { Start(id); });
  }
  PlanRequests();
  PlanFaults();
  std::function<void()> tick = [this, &tick] {
    Tell(Tick());
    CheckBooks();
    At(now_ + kTickEvery, tick);
  };
  At(0, tick);
  while (!report_.violation.has_value()) {
    const Entry next = heap_.top();
    heap_.pop();
    now_ = next.when;
    if (IsQuiet() && IsIdle()) break;
    if (now_ > scene_.faults.end + kPatience) break;
    if (++report_.num_events > kEventBudget) {
      Violate("budget: too many events");
      break;
    }
    (*next.what)();
  }
  if (!report_.violation.has_value()) CheckEnd();
  report_.virtual_us = now_;
  const FleetStatus status = coordinator_.Status(Now());
  report_.num_output_tokens = status.output_tokens;
  report_.num_epochs = status.epochs;
  report_.num_preemptions = status.preemptions;
  report_.num_cached_tokens = status.cached_tokens;
  return report_;
}

void Simulator::At(Micros when, std::function<void()> what) {
  heap_.push({when, ++order_, std::make_shared<std::function<void()>>(std::move(what))});
}

void Simulator::Violate(const std::string& what) {
  if (!report_.violation.has_value()) report_.violation = absl::StrCat(what, ", at ", now_, " us");
}

// ---- The coordinator

void Simulator::Tell(const Event& event) {
  Mix(event.index());
  std::vector<Action> actions;
  coordinator_.Handle(Now(), event, &actions);
  for (const Action& action : actions) {
    if (report_.violation.has_value()) return;
    Do(action);
  }
}

void Simulator::Do(const Action& action) {
  Mix(action.index() + 100);
  if (const auto* send = std::get_if<SendToWorker>(&action)) {
    Deliver(*send);
  } else if (const auto* close = std::get_if<CloseLink>(&action)) {
    const WorkerId id = close->worker;
    plans_.Reset(id);
    Host& host = hosts_.at(id);
    if (host.incarnation == close->incarnation && host.link.number != 0) {
      Unlink(id, /*is_told=*/false);
    }
  } else if (const auto* emit = std::get_if<Emit>(&action)) {
    for (const OutputToken& token : emit->tokens) Mix(static_cast<uint64_t>(token.token.value));
    streams_.See(action);
  } else if (const auto* ask = std::get_if<AskMask>(&action)) {
    Answer(*ask);
  } else if (const auto* note = std::get_if<Note>(&action)) {
    if (options_.has_trace) std::printf("%9" PRId64 " %s\n", now_, note->text.c_str());
  } else {
    streams_.See(action);
  }
}

void Simulator::Deliver(const SendToWorker& send) {
  Host& host = hosts_.at(send.worker);
  Mix(send.worker.value * 16 + send.message.index());
  const auto* plan = std::get_if<StepPlan>(&send.message);
  if (plan != nullptr) {
    Mix(plan->step.value);
    if (options_.has_trace) Print(send.worker, *plan);
    plans_.Sent(send.worker, *plan);
  }
  if (std::holds_alternative<Configure>(send.message) ||
      std::holds_alternative<Abort>(send.message)) {
    plans_.Reset(send.worker);
  }
  if (host.link.number == 0 || host.incarnation != send.incarnation) return;
  host.link.last_down = std::max(host.link.last_down + 1, now_ + Delay());
  const auto arrive = [this, id = send.worker, link = host.link.number, message = send.message] {
    Receive(id, link, message);
  };
  At(host.link.last_down, arrive);
  if (plan != nullptr && !IsQuiet() && prng_.Chance(scene_.faults.duplicate_percent)) {
    At(host.link.last_down + static_cast<Micros>(prng_.Below(60'000)), arrive);
  }
}

void Simulator::Print(WorkerId worker, const StepPlan& plan) const {
  for (const PlanEntry& entry : plan.entries) {
    std::printf("%9" PRId64 " step %" PRIu64 " worker %u: sequence %" PRIu64 " [%d, %d) %s\n",
                now_,
                plan.step.value,
                worker.value,
                entry.sequence.value,
                entry.first_position,
                entry.first_position + entry.num_positions,
                entry.wants_sample ? "sample" : "");
  }
}

// Held, cached and free blocks are what there is, and nobody holds blocks when nobody runs.
void Simulator::CheckBooks() {
  const FleetStatus status = coordinator_.Status(Now());
  for (const CellStatus& cell : status.cells) {
    for (const WorkerStatus& worker : cell.workers) {
      if (worker.full_blocks == 0) continue;
      const bool fits = worker.full_blocks_used >= 0 &&
                        worker.full_blocks_used + worker.full_blocks_cached <= worker.full_blocks;
      if (!fits || worker.full_blocks > scene_.num_full_blocks)
        Violate("books: blocks do not add up");
      if (worker.sequences == 0 && worker.full_blocks_used + worker.window_blocks_used > 0) {
        Violate("books: blocks are held though no sequence is there");
      }
    }
  }
}

// ---- Workers and links

void Simulator::Start(WorkerId id) {
  Host& host = hosts_.at(id);
  if (host.worker != nullptr) return;
  const SimWorkerOptions options{.num_full_blocks = scene_.num_full_blocks,
                                 .num_window_blocks = scene_.num_window_blocks,
                                 .window = scene_.options.sliding_window,
                                 .max_experts = scene_.max_experts,
                                 .is_fenced = options_.is_fenced};
  host.worker = std::make_unique<SimWorker>(options, [this, id](std::string what) {
    Violate(absl::StrCat(what, ", worker ", id.value));
  });
  host.incarnation = Incarnation{prng_.Next() | 1};
  host.running = StepId{};
  host.frozen_until = 0;
  Dial(id);
  Beat(id, host.incarnation);
}

bool Simulator::Lives(WorkerId id, Incarnation incarnation) {
  const Host& host = hosts_.at(id);
  return host.worker != nullptr && host.incarnation == incarnation;
}

void Simulator::Crash(WorkerId id) {
  Host& host = hosts_.at(id);
  if (host.worker == nullptr) return;
  BreakExchange(id);
  Unlink(id, /*is_told=*/true);
  host.worker.reset();
  host.running = StepId{};
  const bool is_quick = prng_.Chance(80);
  At(now_ + (is_quick ? kRestartTime : 20 * kRestartTime), [this, id] { Start(id); });
}

void Simulator::Dial(WorkerId id) {
  Host& host = hosts_.at(id);
  if (host.worker == nullptr || host.link.number != 0) return;
  host.worker->Leave();
  host.running = StepId{};
  host.link = {.number = ++last_link_, .last_down = now_, .last_up = now_};
  const std::string host_name = absl::StrCat("host", id.value / 2);
  SendUp(id,
         Enrol{.worker = id,
               .incarnation = host.incarnation,
               .numerics = {.backend = "sim"},
               .host = host_name,
               .exchange_endpoint = absl::StrCat("local:", id.value),
               .process = "sim",
               .highest_term = host.worker->term(),
               .memory_bytes =
                   (int64_t{scene_.max_experts} * kExpertBytes + kExpertBytes / 2) * 16 / 15,
               .expert_bytes = kExpertBytes,
               .num_experts = scene_.options.num_experts,
               .num_layers = scene_.options.num_layers});
}

// The link is gone; what was under way on it is lost. Both ends notice, unless the coordinator is
// not told or knows.
void Simulator::Unlink(WorkerId id, bool is_told) {
  Host& host = hosts_.at(id);
  if (host.link.number == 0) return;
  const Incarnation incarnation = host.incarnation;
  host.link = Link();
  const Micros notice = now_ + 1'000 + Delay();
  if (is_told) {
    At(notice, [this, id, incarnation] {
      plans_.Reset(id);
      Tell(WorkerLost{id, incarnation, "its link ended"});
    });
  }
  if (host.worker != nullptr) {
    BreakExchange(id);
    host.worker->Leave();
    host.running = StepId{};
    At(notice + 5'000, [this, id] { Dial(id); });
  }
}

void Simulator::Beat(WorkerId id, Incarnation incarnation) {
  if (!Lives(id, incarnation)) return;
  Host& host = hosts_.at(id);
  if (now_ >= host.frozen_until) {
    SendUp(id, shoal::Beat{.highest_term = host.worker->term(), .phase = "sim"});
  }
  At(now_ + kBeatEvery, [this, id, incarnation] { Beat(id, incarnation); });
}

void Simulator::SendUp(WorkerId id, FromWorker message) {
  Host& host = hosts_.at(id);
  if (host.link.number == 0) return;
  host.link.last_up = std::max({host.link.last_up + 1, now_ + Delay(), host.frozen_until});
  const uint64_t link = host.link.number;
  At(host.link.last_up,
     [this, id, link, incarnation = host.incarnation, message = std::move(message)] {
       if (hosts_.at(id).link.number != link) return;
       if (const auto* enrol = std::get_if<Enrol>(&message)) {
         plans_.Reset(id);
         Tell(WorkerEnrolled{*enrol});
         return;
       }
       if (const auto* result = std::get_if<StepResult>(&message)) {
         plans_.Returned(id, result->step);
       }
       Tell(WorkerSaid{id, incarnation, message});
     });
}

void Simulator::Receive(WorkerId id, uint64_t link, const ToWorker& message) {
  Host& host = hosts_.at(id);
  if (host.link.number != link || host.worker == nullptr) return;
  if (now_ < host.frozen_until) {
    At(host.frozen_until, [this, id, link, message] { Receive(id, link, message); });
    return;
  }
  const Configure* const before = host.worker->epoch();
  const Epoch epoch_before = before != nullptr ? before->epoch : Epoch{};
  if (std::holds_alternative<Abort>(message) && before != nullptr) BreakExchange(id);
  if (const auto* configure = std::get_if<Configure>(&message)) {
    if (before != nullptr && configure->epoch > epoch_before) BreakExchange(id);
  }
  for (FromWorker& reply : host.worker->Receive(message)) SendUp(id, std::move(reply));
  const Configure* const after = host.worker->epoch();
  if (after == nullptr || after->epoch != epoch_before) host.running = StepId{};
  if (after != nullptr && after->epoch != epoch_before) Join(id);
  if (std::holds_alternative<StepPlan>(message)) TryStart(id);
  if (const auto* load = std::get_if<LoadExperts>(&message)) {
    const Micros done = now_ + 2'000 + static_cast<Micros>(prng_.Below(40'000));
    At(done, [this, id, incarnation = host.incarnation, request = *load] {
      if (Lives(id, incarnation)) SendUp(id, hosts_.at(id).worker->FinishLoad(request));
    });
  }
}

// ---- Exchanges

void Simulator::Join(WorkerId id) {
  const Configure& epoch = *hosts_.at(id).worker->epoch();
  ExchangeState& exchange = exchanges_[epoch.epoch];
  if (exchange.members.empty()) {
    for (const Member& member : epoch.members) exchange.members.push_back(member.worker);
  }
  exchange.joined.insert(id);
  const auto answer = [this, epoch = epoch.epoch](WorkerId member) {
    At(now_ + Delay(), [this, member, epoch] {
      Host& host = hosts_.at(member);
      if (host.worker == nullptr || host.worker->epoch() == nullptr) return;
      const Configure& current = *host.worker->epoch();
      if (current.epoch != epoch) return;
      const ExchangeState& state = exchanges_.at(epoch);
      if (state.is_broken || state.joined.size() < state.members.size()) {
        SendUp(member,
               Ready{.term = current.term,
                     .cell = current.cell,
                     .epoch = epoch,
                     .status = absl::UnavailableError("sim: the exchange was not built"),
                     .suspects = state.suspects});
        host.worker->Leave();
        return;
      }
      host.worker->ExchangeBuilt();
      SendUp(member, Ready{.term = current.term, .cell = current.cell, .epoch = epoch});
    });
  };
  if (exchange.is_broken) {
    answer(id);
  } else if (exchange.joined.size() == exchange.members.size()) {
    for (const WorkerId member : exchange.members) answer(member);
  } else {
    At(now_ + 1'000 * epoch.deadline_ms, [this, id, answer, number = epoch.epoch] {
      const ExchangeState& state = exchanges_.at(number);
      if (state.joined.size() < state.members.size()) answer(id);
    });
  }
}

// The worker is no longer there for the ranks of its epoch.
void Simulator::BreakExchange(WorkerId id) {
  Host& host = hosts_.at(id);
  if (host.worker == nullptr || host.worker->epoch() == nullptr) return;
  const Configure& epoch = *host.worker->epoch();
  Break(&exchanges_.at(epoch.epoch), {epoch.rank});
}

void Simulator::Break(ExchangeState* exchange, std::vector<Rank> suspects) {
  if (std::exchange(exchange->is_broken, true)) return;
  exchange->suspects = std::move(suspects);
  for (const auto& [step, arrived] : exchange->arrived) {
    for (const WorkerId member : arrived) {
      const Host& host = hosts_.at(member);
      if (host.worker == nullptr || host.worker->epoch() == nullptr) continue;
      const Epoch epoch = host.worker->epoch()->epoch;
      if (&exchanges_.at(epoch) == exchange && host.running == step) {
        At(now_ + Delay(), [this, member, epoch] { FailRank(member, epoch); });
      }
    }
  }
}

// The rank's exchange is dead: the step that it runs has failed.
void Simulator::FailRank(WorkerId id, Epoch epoch) {
  Host& host = hosts_.at(id);
  if (host.worker == nullptr || host.worker->epoch() == nullptr) return;
  const Configure& current = *host.worker->epoch();
  if (current.epoch != epoch || host.running == StepId{}) return;
  SendUp(id,
         StepResult{.term = current.term,
                    .cell = current.cell,
                    .epoch = epoch,
                    .step = host.running,
                    .status = absl::UnavailableError("sim: the exchange broke"),
                    .suspects = exchanges_.at(epoch).suspects});
  host.running = StepId{};
  host.worker->Leave();
}

void Simulator::TryStart(WorkerId id) {
  Host& host = hosts_.at(id);
  if (host.worker == nullptr || host.running != StepId{}) return;
  const StepPlan* const plan = host.worker->next_plan();
  if (plan == nullptr || host.worker->epoch() == nullptr) return;
  const Epoch epoch = host.worker->epoch()->epoch;
  ExchangeState& exchange = exchanges_.at(epoch);
  host.running = plan->step;
  if (exchange.is_broken) {
    At(now_ + Delay(), [this, id, epoch] { FailRank(id, epoch); });
    return;
  }
  std::set<WorkerId>& arrived = exchange.arrived[plan->step];
  arrived.insert(id);
  if (arrived.size() == exchange.members.size()) {
    CompleteStep(&exchange, epoch, plan->step);
    return;
  }
  // A rank that nobody joins gives up at the step's deadline.
  const StepId step = plan->step;
  At(now_ + 1'000 * plan->deadline_ms, [this, epoch, step] {
    ExchangeState& state = exchanges_.at(epoch);
    if (state.arrived[step].size() < state.members.size()) Break(&state, {});
  });
}

void Simulator::CompleteStep(ExchangeState* exchange, Epoch epoch, StepId step) {
  const Micros compute = 300 + static_cast<Micros>(prng_.Below(1'500)) +
                         (prng_.Chance(50) ? scene_.faults.slow_rank_time : 0);
  const bool fails = !IsQuiet() && prng_.Chance(scene_.faults.fail_exchange_percent);
  const size_t num_members = exchange->members.size();
  if (fails) {
    exchange->is_broken = true;
    exchange->suspects = {Rank{static_cast<int32_t>(prng_.Below(num_members))}};
  }
  for (const WorkerId member : exchange->members) {
    // In a failing step some ranks come through: they are one token ahead of the others.
    const bool is_done = !fails || prng_.Chance(50);
    const Incarnation incarnation = hosts_.at(member).incarnation;
    At(now_ + compute + Delay(), [this, member, incarnation, epoch, step, is_done] {
      if (is_done) {
        FinishStep(member, incarnation, epoch, step);
      } else {
        FailRank(member, epoch);
      }
    });
  }
}

void Simulator::FinishStep(WorkerId id, Incarnation incarnation, Epoch epoch, StepId step) {
  if (!Lives(id, incarnation)) return;
  Host& host = hosts_.at(id);
  if (now_ < host.frozen_until) {
    At(host.frozen_until, [=, this] { FinishStep(id, incarnation, epoch, step); });
    return;
  }
  if (host.worker->epoch() == nullptr || host.worker->epoch()->epoch != epoch) return;
  if (host.running != step || host.worker->next_plan() == nullptr) return;
  host.running = StepId{};
  const Rank rank = host.worker->epoch()->rank;
  const StepResult result = host.worker->Run();
  if (!result.status.ok()) Break(&exchanges_.at(epoch), {rank});
  SendUp(id, result);
  TryStart(id);
}

// ---- Faults

WorkerId Simulator::AnyWorker() {
  return WorkerId{static_cast<uint32_t>(prng_.Below(hosts_.size()))};
}

void Simulator::Repeat(Micros every, const std::function<void()>& fault) {
  if (every == 0) return;
  const Micros when = now_ + 1 + static_cast<Micros>(prng_.Below(2 * static_cast<uint64_t>(every)));
  if (when >= scene_.faults.end) return;
  At(when, [this, every, fault] {
    fault();
    Repeat(every, fault);
  });
}

void Simulator::PlanFaults() {
  Repeat(scene_.faults.crash_every, [this] { Crash(AnyWorker()); });
  Repeat(scene_.faults.unlink_every, [this] {
    const bool is_told = !prng_.Chance(scene_.faults.half_open_percent);
    Unlink(AnyWorker(), is_told);
  });
  Repeat(scene_.faults.freeze_every, [this] {
    Host& host = hosts_.at(AnyWorker());
    const Micros thaw = now_ + static_cast<Micros>(prng_.Below(600'000));
    host.frozen_until = std::max(host.frozen_until, std::min(thaw, scene_.faults.end));
  });
}

// ---- The end

bool Simulator::IsIdle() {
  return num_arrived_ == static_cast<int32_t>(asked_.size()) && streams_.num_open() == 0 &&
         coordinator_.Status(Now()).running == 0 && coordinator_.Status(Now()).waiting == 0;
}

void Simulator::CheckEnd() {
  streams_.CheckAllEnded();
  const FleetStatus status = coordinator_.Status(Now());
  if (status.running + status.waiting > 0) {
    Violate(absl::StrCat(
        "liveness: ", status.running, " sequences run and ", status.waiting, " wait for ever"));
  }
  for (const CellStatus& cell : status.cells) {
    for (const WorkerStatus& worker : cell.workers) {
      if (worker.full_blocks_used + worker.window_blocks_used > 0) {
        Violate("books: blocks are held after the end");
      }
    }
  }
  // Every named request is still there, whole.
  for (size_t i = 0; i < asked_.size(); ++i) {
    if (!asked_[i].request.is_named || asked_[i].request.wants_prompt_logits) continue;
    if (!streams_.refusal(first_streams_[i]).ok()) continue;
    const StreamId stream{++last_stream_};
    streams_.Open(stream, &asked_[i], -1, 0);
    Tell(ClientAttached{stream, asked_[i].request.tenant, asked_[i].request.id, -1, 0});
    if (!streams_.refusal(stream).ok()) Violate("retention: a named request is gone");
  }
  streams_.CheckAllEnded();
}

}  // namespace shoal::sim
