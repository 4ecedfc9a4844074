#include "proto/wire.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "base/status_macros.h"
#include "proto/wire_checks.h"
#include "proto/wire_sampling.h"

namespace shoal {
namespace {

namespace pb = fleet::v1;

// ---- Values -> protobuf ----------------------------------------------------------------------

void Set(const absl::Status& status, pb::Outcome* out) {
  out->set_code(static_cast<int>(status.code()));
  out->set_text(Cut(status.message()));
}

template <typename Message, typename Proto>
void SetEpoch(const Message& m, Proto* p) {
  p->set_term(m.term.value);
  p->set_cell(m.cell.value);
  p->set_epoch(m.epoch.value);
}

void Set(const Welcome& m, pb::ToWorker* out) {
  pb::Welcome* p = out->mutable_welcome();
  p->set_term(m.term.value);
  p->set_coordinator(m.coordinator.value);
}

void Set(const Dismiss& m, pb::ToWorker* out) {
  pb::Dismiss* p = out->mutable_dismiss();
  p->set_term(m.term.value);
  Set(m.reason, p->mutable_reason());
}

void Set(const LoadExperts& m, pb::ToWorker* out) {
  pb::LoadExperts* p = out->mutable_load_experts();
  p->set_term(m.term.value);
  p->set_cell(m.cell.value);
  p->set_placement_version(m.placement_version);
  SetIds(m.experts, p->mutable_experts());
}

void Set(const Configure& m, pb::ToWorker* out) {
  pb::Configure* p = out->mutable_configure();
  SetEpoch(m, p);
  p->set_next_step(m.next_step.value);
  p->set_rank(m.rank.value);
  for (const Member& member : m.members) {
    pb::Member* q = p->add_members();
    q->set_worker(member.worker.value);
    q->set_incarnation(member.incarnation.value);
    q->set_exchange_endpoint(Printable(member.exchange_endpoint));
    q->set_host(Printable(member.host));
  }
  p->set_key(m.key.data(), m.key.size());
  p->set_placement_version(m.placement_version);
  for (const std::vector<Rank>& ranks : m.placement) {
    SetIds(ranks, p->add_placement()->mutable_ranks());
  }
  p->set_max_rows(m.max_rows);
  p->set_num_full_blocks(m.num_full_blocks);
  p->set_num_window_blocks(m.num_window_blocks);
  p->set_deadline_ms(m.deadline_ms);
}

template <typename Out>
void Set(const Bootstrap& m, Out* out) {
  pb::Bootstrap* p = out->mutable_bootstrap();
  SetEpoch(m, p);
  p->set_id(m.id);
}

void Set(const Abort& m, pb::ToWorker* out) {
  SetEpoch(m, out->mutable_abort());
}

void Set(const KeepRecord& m, pb::ToWorker* out) {
  pb::KeepRecord* p = out->mutable_keep_record();
  p->set_term(m.term.value);
  p->set_sequence(m.sequence.value);
  p->set_index(m.index);
  SetIds(m.tokens, p->mutable_tokens());
  if (m.index > 0) return;
  p->set_prompt_length(m.prompt_length);
  SetSampling(m.sampling, p->mutable_sampling());
  p->set_envelope(m.envelope);
}

void Set(const StepPlan& m, pb::ToWorker* out) {
  pb::StepPlan* p = out->mutable_step_plan();
  SetEpoch(m, p);
  p->set_step(m.step.value);
  p->set_deadline_ms(m.deadline_ms);
  p->set_most_rows(m.most_rows);
  p->set_most_positions(m.most_positions);
  for (const PlanEntry& entry : m.entries) {
    pb::PlanEntry* q = p->add_entries();
    q->set_sequence(entry.sequence.value);
    q->set_first_position(entry.first_position);
    q->set_num_positions(entry.num_positions);
    q->set_first_block(entry.first_block);
    SetIds(entry.full_blocks, q->mutable_full_blocks());
    SetIds(entry.window_blocks, q->mutable_window_blocks());
    q->set_wants_sample(entry.wants_sample);
    q->set_wants_logits(entry.wants_logits);
    q->mutable_mask()->Add(entry.mask.runs.begin(), entry.mask.runs.end());
  }
  SetIds(m.forget, p->mutable_forget());
}

void Set(const Enrol& m, pb::FromWorker* out) {
  pb::Enrol* p = out->mutable_enrol();
  p->set_worker(m.worker.value);
  p->set_incarnation(m.incarnation.value);
  pb::NumericsClass* numerics = p->mutable_numerics();
  numerics->set_version(Printable(m.numerics.version));
  numerics->set_checkpoint_digest(Printable(m.numerics.checkpoint_digest));
  numerics->set_backend(Printable(m.numerics.backend));
  numerics->set_numerics_version(m.numerics.numerics_version);
  p->set_host(Printable(m.host));
  p->set_exchange_endpoint(Printable(m.exchange_endpoint));
  p->set_process(Printable(m.process));
  p->set_highest_term(m.highest_term.value);
  p->set_memory_bytes(m.memory_bytes);
  p->set_dense_bytes(m.dense_bytes);
  p->set_expert_bytes(m.expert_bytes);
  p->set_num_experts(m.num_experts);
  p->set_num_layers(m.num_layers);
}

void Set(const Beat& m, pb::FromWorker* out) {
  pb::Beat* p = out->mutable_beat();
  p->set_highest_term(m.highest_term.value);
  p->set_phase(Printable(m.phase));
  p->set_load_done_bytes(m.load_done_bytes);
  p->set_load_total_bytes(m.load_total_bytes);
  p->set_kv_full_blocks_used(m.kv_full_blocks_used);
  p->set_resident_bytes(m.resident_bytes);
}

void Set(const ExpertsLoaded& m, pb::FromWorker* out) {
  pb::ExpertsLoaded* p = out->mutable_experts_loaded();
  p->set_cell(m.cell.value);
  p->set_placement_version(m.placement_version);
  Set(m.status, p->mutable_outcome());
  p->set_num_full_blocks(m.num_full_blocks);
  p->set_num_window_blocks(m.num_window_blocks);
}

void Set(const Ready& m, pb::FromWorker* out) {
  pb::Ready* p = out->mutable_ready();
  SetEpoch(m, p);
  Set(m.status, p->mutable_outcome());
  SetIds(m.suspects, p->mutable_suspects());
}

void Set(const Refusal& m, pb::FromWorker* out) {
  pb::Refusal* p = out->mutable_refusal();
  SetEpoch(m, p);
  p->set_step(m.step.value);
  Set(m.reason, p->mutable_reason());
}

void Set(const StepResult& m, pb::FromWorker* out) {
  pb::StepResult* p = out->mutable_step_result();
  SetEpoch(m, p);
  p->set_step(m.step.value);
  Set(m.status, p->mutable_outcome());
  SetIds(m.suspects, p->mutable_suspects());
  for (const SampledToken& sampled : m.tokens) {
    pb::SampledToken* q = p->add_tokens();
    q->set_sequence(sampled.sequence.value);
    q->set_position(sampled.position);
    q->set_token(sampled.token.value);
    q->set_logprob(sampled.logprob);
    for (const TopLogprob& top : sampled.top) {
      pb::TopLogprob* r = q->add_top();
      r->set_token(top.token.value);
      r->set_logprob(top.logprob);
    }
  }
  p->set_compute_us(m.compute_us);
  p->set_wait_us(m.wait_us);
}

// Whole rows only: a message says which positions it covers.
void AddLogits(StepId step, const LogitRows& rows, std::vector<pb::FromWorker>* out) {
  if (rows.num_positions <= 0) return;
  const int64_t vocab = static_cast<int64_t>(rows.values.size()) / rows.num_positions;
  const int64_t rows_per_message =
      std::max<int64_t>(1, kMaxLogitValuesPerMessage / std::max<int64_t>(1, vocab));
  for (int64_t first = 0; first < rows.num_positions; first += rows_per_message) {
    const int64_t count = std::min<int64_t>(rows_per_message, rows.num_positions - first);
    pb::LogitRows* p = out->emplace_back().mutable_logits();
    p->set_step(step.value);
    p->set_sequence(rows.sequence.value);
    p->set_first_position(rows.first_position + static_cast<int32_t>(first));
    p->set_num_positions(static_cast<int32_t>(count));
    const float* begin = rows.values.data() + first * vocab;
    p->mutable_values()->Add(begin, begin + count * vocab);
  }
}

// ---- Protobuf -> values ----------------------------------------------------------------------

template <typename T>
absl::Status GetCount(absl::string_view field, T value, T* out) {
  *out = value;
  return CheckCount(field, value);
}

template <typename Proto, typename Message>
void GetEpoch(const Proto& p, Message* m) {
  m->term = {p.term()};
  m->cell = {p.cell()};
  m->epoch = {p.epoch()};
}

absl::Status Get(absl::string_view field, const pb::Outcome& p, absl::Status* out) {
  if (p.code() < 0 || p.code() > static_cast<int>(absl::StatusCode::kUnauthenticated)) {
    return Refused(absl::StrCat(field, ".code"), p.code(), "a canonical status code");
  }
  RETURN_IF_ERROR(CheckText(absl::StrCat(field, ".text"), p.text()));
  *out = absl::Status(static_cast<absl::StatusCode>(p.code()), p.text());
  return absl::OkStatus();
}

absl::StatusOr<ToWorker> Get(const pb::Welcome& p) {
  return Welcome{.term = {p.term()}, .coordinator = {p.coordinator()}};
}

absl::StatusOr<ToWorker> Get(const pb::Dismiss& p) {
  Dismiss m{.term = {p.term()}, .reason = {}};
  RETURN_IF_ERROR(Get("dismiss.reason", p.reason(), &m.reason));
  if (m.reason.ok()) return Refused("dismiss.reason", "OK", "an error");
  return m;
}

absl::StatusOr<ToWorker> Get(const pb::LoadExperts& p) {
  LoadExperts m{.term = {p.term()},
                .cell = {p.cell()},
                .placement_version = p.placement_version(),
                .experts = {}};
  RETURN_IF_ERROR(GetRisingIds("load_experts.experts", p.experts(), &m.experts));
  return m;
}

absl::Status GetMembers(const pb::Configure& p, std::vector<Member>* out) {
  for (const pb::Member& member : p.members()) {
    RETURN_IF_ERROR(CheckText("configure.exchange_endpoint", member.exchange_endpoint()));
    RETURN_IF_ERROR(CheckText("configure.host", member.host()));
    out->push_back(Member{.worker = {member.worker()},
                          .incarnation = {member.incarnation()},
                          .exchange_endpoint = member.exchange_endpoint(),
                          .host = member.host()});
  }
  return absl::OkStatus();
}

absl::Status GetPlacement(const pb::Configure& p, std::vector<std::vector<Rank>>* out) {
  for (const pb::Holders& holders : p.placement()) {
    std::vector<Rank>& ranks = out->emplace_back();
    RETURN_IF_ERROR(GetRisingIds("configure.placement", holders.ranks(), &ranks));
    if (ranks.empty()) {
      return Refused("configure.placement of expert", out->size() - 1, "held by some rank");
    }
    if (ranks.back().value >= p.members_size()) {
      return Refused("configure.placement", ranks.back().value, "a member's rank");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ToWorker> Get(const pb::Configure& p) {
  Configure m;
  GetEpoch(p, &m);
  m.next_step = {p.next_step()};
  m.rank = {p.rank()};
  if (p.rank() < 0 || p.rank() >= p.members_size()) {
    return Refused("configure.rank", p.rank(), absl::StrCat("below ", p.members_size()));
  }
  RETURN_IF_ERROR(GetMembers(p, &m.members));
  if (p.key().size() != m.key.size()) {
    return Refused("configure.key.size", p.key().size(), absl::StrCat(m.key.size()));
  }
  std::copy(p.key().begin(), p.key().end(), m.key.begin());
  m.placement_version = p.placement_version();
  RETURN_IF_ERROR(GetPlacement(p, &m.placement));
  RETURN_IF_ERROR(GetCount("configure.max_rows", p.max_rows(), &m.max_rows));
  RETURN_IF_ERROR(GetCount("configure.num_full_blocks", p.num_full_blocks(), &m.num_full_blocks));
  RETURN_IF_ERROR(
      GetCount("configure.num_window_blocks", p.num_window_blocks(), &m.num_window_blocks));
  RETURN_IF_ERROR(GetCount("configure.deadline_ms", p.deadline_ms(), &m.deadline_ms));
  return m;
}

absl::StatusOr<Bootstrap> Get(const pb::Bootstrap& p) {
  Bootstrap m{.id = p.id()};
  GetEpoch(p, &m);
  RETURN_IF_ERROR(CheckText("bootstrap.id", m.id));
  if (m.id.empty()) return Refused("bootstrap.id.size", 0, "at least 1");
  return m;
}

absl::StatusOr<ToWorker> Get(const pb::Abort& p) {
  return Abort{.term = {p.term()}, .cell = {p.cell()}, .epoch = {p.epoch()}};
}

absl::StatusOr<ToWorker> Get(const pb::KeepRecord& p) {
  KeepRecord m;
  m.term = {p.term()};
  m.sequence = {p.sequence()};
  RETURN_IF_ERROR(GetCount("keep_record.index", p.index(), &m.index));
  RETURN_IF_ERROR(GetIds("keep_record.tokens", p.tokens(), 0, &m.tokens));
  if (m.index > 0) return m;
  RETURN_IF_ERROR(GetCount("keep_record.prompt_length", p.prompt_length(), &m.prompt_length));
  RETURN_IF_ERROR(GetSampling(p.sampling(), &m.sampling));
  m.envelope = p.envelope();
  return m;
}

// Every run but the first, of refused ids, has a length; together they are ids.
absl::Status GetMask(const pb::PlanEntry& p, TokenMask* out) {
  if (p.mask_size() > 0 && !p.wants_sample()) {
    return Refused("step_plan.entries.mask.size", p.mask_size(), "0 where nothing is sampled");
  }
  out->runs.assign(p.mask().begin(), p.mask().end());
  for (size_t i = 1; i < out->runs.size(); ++i) {
    if (out->runs[i] == 0) return Refused("step_plan.entries.mask run", 0, "at least 1");
  }
  if (CoveredIds(*out) > std::numeric_limits<int32_t>::max()) {
    return Refused("step_plan.entries.mask of ids", CoveredIds(*out), "at most 2^31 - 1");
  }
  return absl::OkStatus();
}

absl::StatusOr<PlanEntry> Get(const pb::PlanEntry& p) {
  PlanEntry entry;
  entry.sequence = {p.sequence()};
  RETURN_IF_ERROR(CheckSpan("step_plan.entries", p.first_position(), p.num_positions()));
  entry.first_position = p.first_position();
  entry.num_positions = p.num_positions();
  RETURN_IF_ERROR(GetCount("step_plan.entries.first_block", p.first_block(), &entry.first_block));
  RETURN_IF_ERROR(GetIds("step_plan.entries.full_blocks", p.full_blocks(), 0, &entry.full_blocks));
  RETURN_IF_ERROR(GetIds(
      "step_plan.entries.window_blocks", p.window_blocks(), kNoBlock.value, &entry.window_blocks));
  if (entry.full_blocks.size() != entry.window_blocks.size()) {
    return Refused("step_plan.entries.window_blocks.size",
                   entry.window_blocks.size(),
                   absl::StrCat(entry.full_blocks.size()));
  }
  entry.wants_sample = p.wants_sample();
  entry.wants_logits = p.wants_logits();
  RETURN_IF_ERROR(GetMask(p, &entry.mask));
  return entry;
}

absl::StatusOr<ToWorker> Get(const pb::StepPlan& p) {
  StepPlan m;
  GetEpoch(p, &m);
  m.step = {p.step()};
  RETURN_IF_ERROR(GetCount("step_plan.deadline_ms", p.deadline_ms(), &m.deadline_ms));
  RETURN_IF_ERROR(GetCount("step_plan.most_rows", p.most_rows(), &m.most_rows));
  RETURN_IF_ERROR(GetCount("step_plan.most_positions", p.most_positions(), &m.most_positions));
  m.entries.reserve(static_cast<size_t>(p.entries_size()));
  for (const pb::PlanEntry& entry : p.entries()) {
    ASSIGN_OR_RETURN(m.entries.emplace_back(), Get(entry));
  }
  RETURN_IF_ERROR(GetIds("step_plan.forget", p.forget(), uint64_t{0}, &m.forget));
  return m;
}

absl::StatusOr<FromWorker> Get(const pb::Enrol& p) {
  for (const std::string* text : {&p.numerics().version(),
                                  &p.numerics().checkpoint_digest(),
                                  &p.numerics().backend(),
                                  &p.host(),
                                  &p.exchange_endpoint(),
                                  &p.process()}) {
    RETURN_IF_ERROR(CheckText("enrol", *text));
  }
  if (p.incarnation() == 0) return Refused("enrol.incarnation", 0, "random and not zero");
  Enrol m{.worker = {p.worker()},
          .incarnation = {p.incarnation()},
          .numerics = {.version = p.numerics().version(),
                       .checkpoint_digest = p.numerics().checkpoint_digest(),
                       .backend = p.numerics().backend(),
                       .numerics_version = p.numerics().numerics_version()},
          .host = p.host(),
          .exchange_endpoint = p.exchange_endpoint(),
          .process = p.process(),
          .highest_term = {p.highest_term()}};
  RETURN_IF_ERROR(GetCount("enrol.memory_bytes", p.memory_bytes(), &m.memory_bytes));
  RETURN_IF_ERROR(GetCount("enrol.dense_bytes", p.dense_bytes(), &m.dense_bytes));
  RETURN_IF_ERROR(GetCount("enrol.expert_bytes", p.expert_bytes(), &m.expert_bytes));
  RETURN_IF_ERROR(GetCount("enrol.num_experts", p.num_experts(), &m.num_experts));
  RETURN_IF_ERROR(GetCount("enrol.num_layers", p.num_layers(), &m.num_layers));
  return m;
}

absl::StatusOr<FromWorker> Get(const pb::Beat& p) {
  RETURN_IF_ERROR(CheckText("beat.phase", p.phase()));
  Beat m{.highest_term = {p.highest_term()}, .phase = p.phase()};
  RETURN_IF_ERROR(GetCount("beat.load_done_bytes", p.load_done_bytes(), &m.load_done_bytes));
  RETURN_IF_ERROR(GetCount("beat.load_total_bytes", p.load_total_bytes(), &m.load_total_bytes));
  RETURN_IF_ERROR(
      GetCount("beat.kv_full_blocks_used", p.kv_full_blocks_used(), &m.kv_full_blocks_used));
  RETURN_IF_ERROR(GetCount("beat.resident_bytes", p.resident_bytes(), &m.resident_bytes));
  return m;
}

absl::StatusOr<FromWorker> Get(const pb::ExpertsLoaded& p) {
  ExpertsLoaded m;
  m.cell = {p.cell()};
  m.placement_version = p.placement_version();
  RETURN_IF_ERROR(Get("experts_loaded.outcome", p.outcome(), &m.status));
  RETURN_IF_ERROR(
      GetCount("experts_loaded.num_full_blocks", p.num_full_blocks(), &m.num_full_blocks));
  RETURN_IF_ERROR(
      GetCount("experts_loaded.num_window_blocks", p.num_window_blocks(), &m.num_window_blocks));
  return m;
}

absl::StatusOr<FromWorker> Get(const pb::Ready& p) {
  Ready m;
  GetEpoch(p, &m);
  RETURN_IF_ERROR(Get("ready.outcome", p.outcome(), &m.status));
  RETURN_IF_ERROR(GetIds("ready.suspects", p.suspects(), 0, &m.suspects));
  return m;
}

absl::StatusOr<FromWorker> Get(const pb::Refusal& p) {
  Refusal m;
  GetEpoch(p, &m);
  m.step = {p.step()};
  RETURN_IF_ERROR(Get("refusal.reason", p.reason(), &m.reason));
  if (m.reason.ok()) return Refused("refusal.reason", "OK", "an error");
  return m;
}

absl::StatusOr<SampledToken> Get(const pb::SampledToken& p) {
  SampledToken sampled;
  sampled.sequence = {p.sequence()};
  RETURN_IF_ERROR(GetCount("step_result.tokens.position", p.position(), &sampled.position));
  sampled.token = {p.token()};
  if (p.token() < -1) return Refused("step_result.tokens.token", p.token(), "at least -1");
  sampled.logprob = p.logprob();
  for (const pb::TopLogprob& top : p.top()) {
    RETURN_IF_ERROR(CheckCount("step_result.tokens.top.token", top.token()));
    sampled.top.push_back(TopLogprob{.token = {top.token()}, .logprob = top.logprob()});
  }
  return sampled;
}

}  // namespace

pb::ToWorker ToProto(const ToWorker& message) {
  pb::ToWorker out;
  std::visit([&out](const auto& m) { Set(m, &out); }, message);
  return out;
}

absl::StatusOr<ToWorker> FromProto(const pb::ToWorker& message) {
  switch (message.message_case()) {
    case pb::ToWorker::kWelcome:
      return Get(message.welcome());
    case pb::ToWorker::kDismiss:
      return Get(message.dismiss());
    case pb::ToWorker::kLoadExperts:
      return Get(message.load_experts());
    case pb::ToWorker::kConfigure:
      return Get(message.configure());
    case pb::ToWorker::kBootstrap:
      return Get(message.bootstrap());
    case pb::ToWorker::kAbort:
      return Get(message.abort());
    case pb::ToWorker::kKeepRecord:
      return Get(message.keep_record());
    case pb::ToWorker::kStepPlan:
      return Get(message.step_plan());
    case pb::ToWorker::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message to a worker without content");
}

std::vector<pb::FromWorker> ToProto(const FromWorker& message) {
  std::vector<pb::FromWorker> out;
  if (const StepResult* result = std::get_if<StepResult>(&message)) {
    for (const LogitRows& rows : result->logits) AddLogits(result->step, rows, &out);
  }
  pb::FromWorker& last = out.emplace_back();
  std::visit([&last](const auto& m) { Set(m, &last); }, message);
  return out;
}

absl::StatusOr<std::optional<FromWorker>> FromWorkerReader::Read(const pb::FromWorker& message) {
  switch (message.message_case()) {
    case pb::FromWorker::kEnrol:
      return Get(message.enrol());
    case pb::FromWorker::kBeat:
      return Get(message.beat());
    case pb::FromWorker::kExpertsLoaded:
      return Get(message.experts_loaded());
    case pb::FromWorker::kBootstrap:
      return Get(message.bootstrap());
    case pb::FromWorker::kReady:
      return Get(message.ready());
    case pb::FromWorker::kRefusal:
      return Get(message.refusal());
    case pb::FromWorker::kStepResult:
      return Complete(message.step_result());
    case pb::FromWorker::kLogits:
      RETURN_IF_ERROR(Hold(message.logits()));
      return std::nullopt;
    case pb::FromWorker::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("a message from a worker without content");
}

absl::Status FromWorkerReader::Hold(const pb::LogitRows& p) {
  RETURN_IF_ERROR(CheckSpan("logits", p.first_position(), p.num_positions()));
  if (p.values_size() % p.num_positions() != 0) {
    return Refused(
        "logits.values.size", p.values_size(), absl::StrCat("a multiple of ", p.num_positions()));
  }
  if (!held_.empty() && p.step() != held_step_.value) {
    return Refused("logits.step", p.step(), absl::StrCat(held_step_.value));
  }
  num_held_values_ += p.values_size();
  if (num_held_values_ > kMaxLogitValuesPerStep) {
    return Refused(
        "logits of a step", num_held_values_, absl::StrCat("at most ", kMaxLogitValuesPerStep));
  }
  held_step_ = {p.step()};
  const bool continues =
      !held_.empty() && held_.back().sequence.value == p.sequence() &&
      int64_t{held_.back().first_position} + held_.back().num_positions == p.first_position();
  if (!continues) {
    held_.push_back(LogitRows{.sequence = {p.sequence()},
                              .first_position = p.first_position(),
                              .num_positions = 0,
                              .values = {}});
  }
  LogitRows& rows = held_.back();
  const bool has_equal_vocab =
      !continues || rows.values.size() / static_cast<size_t>(rows.num_positions) ==
                        static_cast<size_t>(p.values_size() / p.num_positions());
  if (!has_equal_vocab) {
    return Refused("logits.values.size", p.values_size(), "of the vocabulary before");
  }
  rows.num_positions += p.num_positions();
  rows.values.insert(rows.values.end(), p.values().begin(), p.values().end());
  return absl::OkStatus();
}

absl::StatusOr<StepResult> FromWorkerReader::Complete(const pb::StepResult& p) {
  StepResult m;
  GetEpoch(p, &m);
  m.step = {p.step()};
  RETURN_IF_ERROR(Get("step_result.outcome", p.outcome(), &m.status));
  RETURN_IF_ERROR(GetIds("step_result.suspects", p.suspects(), 0, &m.suspects));
  m.tokens.reserve(static_cast<size_t>(p.tokens_size()));
  for (const pb::SampledToken& sampled : p.tokens()) {
    ASSIGN_OR_RETURN(m.tokens.emplace_back(), Get(sampled));
  }
  RETURN_IF_ERROR(GetCount("step_result.compute_us", p.compute_us(), &m.compute_us));
  RETURN_IF_ERROR(GetCount("step_result.wait_us", p.wait_us(), &m.wait_us));
  if (!held_.empty() && held_step_ != m.step) {
    return Refused("step_result.step", p.step(), absl::StrCat(held_step_.value, " of its logits"));
  }
  m.logits = std::exchange(held_, {});
  num_held_values_ = 0;
  return m;
}

}  // namespace shoal
