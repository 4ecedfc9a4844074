#include "worker/worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

// Messages that wait for the step thread. At most two of them are plans; the rest are records.
constexpr size_t kMaxWaitingMessages = 4096;

// What the K/V memory is laid out for: so many sequences with a window each, and a step and a cell
// of this size. Epochs may be larger or smaller; this only shares out memory.
constexpr int32_t kUsualSequences = 64;
constexpr int32_t kUsualRows = 512;
constexpr int32_t kUsualRanks = 8;

std::vector<ExpertId> ExpertsOf(Rank rank, const std::vector<std::vector<Rank>>& placement) {
  std::vector<ExpertId> experts;
  for (size_t e = 0; e < placement.size(); ++e) {
    if (std::binary_search(placement[e].begin(), placement[e].end(), rank)) {
      experts.push_back(ExpertId{static_cast<int32_t>(e)});
    }
  }
  return experts;
}

// What the rest of EnterEpoch relies on.
absl::Status CheckMembership(const Configure& message, const ModelConfig& config) {
  const auto num_ranks = static_cast<int32_t>(message.members.size());
  if (message.rank.value < 0 || message.rank.value >= num_ranks) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", message.rank.value, " of ", num_ranks));
  }
  if (message.placement.size() != static_cast<size_t>(config.num_experts)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a placement of ", message.placement.size(), " experts, there are ", config.num_experts));
  }
  for (size_t e = 0; e < message.placement.size(); ++e) {
    const std::vector<Rank>& ranks = message.placement[e];
    const bool rises = std::is_sorted(ranks.begin(), ranks.end());
    if (ranks.empty() || !rises || ranks.front().value < 0 || ranks.back().value >= num_ranks) {
      return absl::InvalidArgumentError(
          absl::StrCat("expert ", e, " is not on ranks 0 to ", num_ranks - 1));
    }
  }
  const auto [fewest, most] = std::minmax(message.num_full_blocks, message.num_window_blocks);
  if (message.max_rows < 1 || fewest < 1 || most > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrCat(message.max_rows,
                                                   " rows, ",
                                                   message.num_full_blocks,
                                                   " and ",
                                                   message.num_window_blocks,
                                                   " blocks: at least 1, blocks at most ",
                                                   kMaxBlocks));
  }
  return absl::OkStatus();
}

}  // namespace

Worker::Worker(WorkerOptions options, WorkerParts parts)
    : options_(std::move(options)),
      config_(parts.source->config()),
      source_(*parts.source),
      dense_(*parts.dense),
      backend_(*parts.backend),
      exchanges_(*parts.exchanges),
      send_(std::move(parts.send)),
      now_(std::move(parts.now)),
      expert_bytes_(ExpertResidentBytes(config_, backend_)),
      queue_(kMaxWaitingMessages),
      fence_(options_.highest_term),
      lowering_(config_),
      rope_(&backend_),
      kv_cache_(config_, &backend_),
      seen_term_(options_.highest_term) {
  exchanges_.SetPublisher([this](Bootstrap bootstrap) {  // Called by Create, on the step thread
    bootstrap.term = fence_.term();
    send_(std::move(bootstrap));
  });
  Publish("enrolled");
  holdings_ = std::make_unique<Holdings>(std::move(parts.experts));
  thread_ = std::thread([this] { Run(); });
}

Worker::~Worker() {
  {
    absl::MutexLock lock(&mutex_);
    ended_epoch_ = Epoch{~uint64_t{0}};
    Interrupt();
  }
  queue_.Close();
  thread_.join();
}

bool Worker::Deliver(ToWorker message, absl::Time deadline) {
  if (const auto* bootstrap = std::get_if<Bootstrap>(&message)) PassOn(*bootstrap);
  if (const auto* abort = std::get_if<Abort>(&message)) EndEpochs(*abort);
  if (const auto* configure = std::get_if<Configure>(&message)) EndEpochs(*configure);
  return queue_.Push(std::move(message), deadline);
}

// The step thread, in Create, is who waits for it.
void Worker::PassOn(const Bootstrap& message) {
  {
    absl::MutexLock lock(&mutex_);
    if (message.term < seen_term_) return;
  }
  exchanges_.Deliver(message);
}

// Only what the fence will obey may end an epoch early; these two are its rules.
void Worker::EndEpochs(const Abort& message) {
  absl::MutexLock lock(&mutex_);
  if (message.term < seen_term_ || message.cell != seen_cell_) return;
  ended_epoch_ = std::max(ended_epoch_, message.epoch);
  if (seen_epoch_ <= message.epoch) Interrupt();
}

void Worker::EndEpochs(const Configure& message) {
  absl::MutexLock lock(&mutex_);
  if (message.term < seen_term_ || message.epoch <= seen_epoch_) return;
  seen_cell_ = message.cell;
  ended_epoch_ = std::max(ended_epoch_, Epoch{message.epoch.value - 1});
  Interrupt();
}

void Worker::Interrupt() {
  if (exchange_ != nullptr) exchange_->Abort(absl::AbortedError("the epoch was ended"));
  if (is_making_exchange_) exchanges_.AbortCreate();
}

absl::Status Worker::fault() const {
  absl::MutexLock lock(&mutex_);
  return fault_;
}

Enrol Worker::enrol() const {
  return {.worker = options_.id,
          .incarnation = options_.incarnation,
          .numerics = {.version = options_.version,
                       .checkpoint_digest = source_.digest(),
                       .backend = std::string(backend_.numerics_class()),
                       .numerics_version = kNumericsVersion},
          .host = options_.host,
          .exchange_endpoint = exchanges_.endpoint(),
          .process = options_.process,
          .highest_term = beat().highest_term,
          .memory_bytes = options_.memory_bytes,
          .dense_bytes = options_.dense_bytes,
          .expert_bytes = expert_bytes_,
          .num_experts = config_.num_experts,
          .num_layers = config_.num_layers};
}

Beat Worker::beat() const {
  const Holdings::Progress progress = holdings_->progress();
  absl::MutexLock lock(&mutex_);
  Beat beat = beat_;
  if (progress.is_loading && beat.phase == "enrolled") beat.phase = "loading";
  beat.load_done_bytes = progress.done_bytes;
  beat.load_total_bytes = progress.total_bytes;
  beat.resident_bytes += progress.resident_bytes;
  return beat;
}

void Worker::Publish(absl::string_view phase) {
  absl::MutexLock lock(&mutex_);
  seen_term_ = std::max(seen_term_, fence_.term());
  beat_ = {.highest_term = fence_.term(),
           .phase = std::string(phase),
           .load_done_bytes = 0,
           .load_total_bytes = 0,
           .kv_full_blocks_used = lowering_.full_blocks_used(),
           .resident_bytes = options_.dense_bytes + kv_cache_.bytes()};
}

void Worker::Run() {
  while (auto item = queue_.Pop(absl::InfiniteFuture())) {
    if (auto* answer = std::get_if<LoadAnswer>(&*item)) {
      Handle(*answer);
    } else {
      std::visit([this](auto& message) { Handle(message); }, std::get<ToWorker>(*item));
    }
    Publish(epoch_ != nullptr ? "ready" : "enrolled");
  }
  LeaveEpoch();
}

void Worker::Refuse(absl::Status reason) {
  send_(Refusal{.term = fence_.term(),
                .cell = cell_,
                .epoch = fence_.epoch(),
                .step = fence_.next_step(),
                .reason = std::move(reason)});
}

// From here on we are a new member: every record will come again, from its first token. Those of
// sequences that ended while there was no link nobody will ask us to forget.
void Worker::Handle(const Welcome& message) {
  if (fence_.Judge(message.term) == Fence::Verdict::kRefuse) return Refuse(fence_.refusal());
  LeaveEpoch();
  records_.ForgetAll();
  lowering_.ForgetAll();
}

// The link leaves; there is nothing left to obey.
void Worker::Handle(const Dismiss&) {}

void Worker::Handle(LoadExperts& message) {
  if (fence_.Judge(message.term) == Fence::Verdict::kRefuse) return Refuse(fence_.refusal());
  const std::vector<ExpertId>& experts = message.experts;
  const bool rises =
      std::adjacent_find(experts.begin(), experts.end(), std::greater_equal<>()) == experts.end();
  if (!rises || (!experts.empty() &&
                 (experts.front().value < 0 || experts.back().value >= config_.num_experts))) {
    return Handle(LoadAnswer{.request = std::move(message),
                             .status = absl::InvalidArgumentError(absl::StrCat(
                                 "experts must rise within 0 to ", config_.num_experts - 1))});
  }
  holdings_->Load(experts, [this, message](absl::Status status) {
    queue_.Push(LoadAnswer{.request = message, .status = std::move(status)},
                absl::InfiniteFuture());  // Ends when the queue closes.
  });
}

void Worker::Handle(const LoadAnswer& answer) {
  blocks_ = ChooseBlocks();
  absl::Status status = answer.status;
  if (status.ok() && (blocks_.full == 0 || blocks_.window == 0)) {
    const int64_t weights = options_.dense_bytes + holdings_->progress().resident_bytes;
    const int64_t least = UsualStepBytes() + FullBlockBytes(config_) + WindowBlockBytes(config_);
    status = absl::ResourceExhaustedError(absl::StrCat("too little memory: weights take ",
                                                       weights,
                                                       " bytes, a step and its K/V at least ",
                                                       least,
                                                       "; ",
                                                       weights + least - options_.memory_bytes,
                                                       " are missing"));
  }
  send_(ExpertsLoaded{.cell = answer.request.cell,
                      .placement_version = answer.request.placement_version,
                      .status = std::move(status),
                      .num_full_blocks = blocks_.full,
                      .num_window_blocks = blocks_.window});
}

int64_t Worker::UsualStepBytes() const {
  return Activations::Bytes(config_,
                            {.max_rows = kUsualRows,
                             .num_ranks = kUsualRanks,
                             .slot_rows = exchanges_.max_slot_rows(),
                             .sequence_blocks = config_.max_positions / kBlockTokens});
}

// Other counts than before cost all K/V, so they change only if they must.
BlockCounts Worker::ChooseBlocks() {
  const int64_t full_bytes = FullBlockBytes(config_);
  const int64_t window_bytes = WindowBlockBytes(config_);
  if (options_.kv_tokens > 0) {
    // So many blocks of either kind; what the windows do not need is not asked for.
    const int64_t blocks = (options_.kv_tokens + kBlockTokens - 1) / kBlockTokens;
    BlockCounts counts =
        BlocksThatFit(config_, blocks * (full_bytes + window_bytes), kUsualSequences, kUsualRows);
    counts.full = static_cast<int32_t>(std::min<int64_t>(counts.full, blocks));
    return counts;
  }
  const int64_t experts = holdings_->progress().resident_bytes;
  const int64_t room = options_.memory_bytes - options_.dense_bytes - experts - UsualStepBytes();
  const bool is_chosen = blocks_.full > 0;
  if (is_chosen && blocks_.full * full_bytes + blocks_.window * window_bytes <= room) {
    return blocks_;
  }
  // Half as many experts again may come when a rank is lost; there are no more than all.
  const int64_t other_experts = expert_bytes_ * config_.num_experts - experts;
  const int64_t reserve = is_chosen ? 0 : std::min({experts / 2, other_experts, room / 2});
  return BlocksThatFit(config_, room - std::max<int64_t>(0, reserve), kUsualSequences, kUsualRows);
}

void Worker::Handle(const KeepRecord& message) {
  if (fence_.Judge(message.term) == Fence::Verdict::kRefuse) return Refuse(fence_.refusal());
  const absl::Status status = records_.Keep(message);
  if (!status.ok()) Refuse(status);
}

// Its epoch's exchange had it on delivery; what is left is to judge the term.
void Worker::Handle(const Bootstrap& message) {
  if (fence_.Judge(message.term) == Fence::Verdict::kRefuse) Refuse(fence_.refusal());
}

void Worker::Handle(const Abort& message) {
  if (fence_.Judge(message) == Fence::Verdict::kObey) return LeaveEpoch();
  // An epoch that is over already, by a failed step say, needs no second end.
  if (message.term < fence_.term()) Refuse(fence_.refusal());
}

void Worker::Handle(const Configure& message) {
  if (fence_.Judge(message) == Fence::Verdict::kRefuse) return Refuse(fence_.refusal());
  LeaveEpoch();
  fence_.Enter(message);
  cell_ = message.cell;
  Publish("entering");
  const absl::Status status = EnterEpoch(message);
  if (!status.ok()) LeaveEpoch();
  send_(Ready{.term = message.term,
              .cell = message.cell,
              .epoch = message.epoch,
              .status = status,
              .suspects = status.ok() ? std::vector<Rank>{} : SuspectsOf(status)});
}

absl::Status Worker::EnterEpoch(const Configure& message) {
  RETURN_IF_ERROR(CheckMembership(message, config_));
  if (message.members.size() > 1 && !options_.exchanges_rows) {
    return absl::FailedPreconditionError(absl::StrCat("a cell of ",
                                                      message.members.size(),
                                                      " ranks: rows on a GPU cannot travel over ",
                                                      exchanges_.endpoint(),
                                                      "; --exchange nccl carries them"));
  }
  ASSIGN_OR_RETURN(HeldExperts experts, holdings_->Use(ExpertsOf(message.rank, message.placement)));
  RETURN_IF_ERROR(MakeBuffers(message));
  lowering_.EnterEpoch({.max_rows = message.max_rows,
                        .num_full_blocks = message.num_full_blocks,
                        .num_window_blocks = message.num_window_blocks});
  ASSIGN_OR_RETURN(std::unique_ptr<Exchange> exchange, MakeExchange(message, experts));
  epoch_ = std::make_unique<EpochState>();
  epoch_->experts = std::move(experts);
  epoch_->placement = message.placement;
  epoch_->exchange = std::move(exchange);
  epoch_->forward = std::make_unique<Forward>(
      ForwardParts{.config = &config_,
                   .backend = &backend_,
                   .dense = &dense_,
                   .rope = rope_.data(),
                   .experts = epoch_->experts.layers,
                   .local_index = epoch_->experts.local_index,
                   .placement = epoch_->placement,
                   .self = message.rank,
                   .num_ranks = static_cast<int32_t>(message.members.size()),
                   .kv_cache = &kv_cache_,
                   .activations = activations_.get(),
                   .exchange = epoch_->exchange.get()});
  return absl::OkStatus();
}

absl::Status Worker::MakeBuffers(const Configure& message) {
  RETURN_IF_ERROR(
      kv_cache_.Resize({.full = message.num_full_blocks, .window = message.num_window_blocks}));
  const int64_t room = int64_t{message.num_full_blocks} * kBlockTokens;
  const auto positions = static_cast<int32_t>(std::min<int64_t>(config_.max_positions, room));
  ActivationSizes sizes{.max_rows = message.max_rows,
                        .num_ranks = static_cast<int32_t>(message.members.size())};
  if (sizes.num_ranks > 1 && exchanges_.max_slot_rows() > 0) {
    sizes.slot_rows = exchanges_.max_slot_rows();
    sizes.sequence_blocks = (positions + kBlockTokens - 1) / kBlockTokens;
  }
  if (activations_ == nullptr || !(activations_->sizes() == sizes)) {
    activations_.reset();  // Before the new ones are made: there may not be room for both.
    ASSIGN_OR_RETURN(activations_, Activations::Create(config_, sizes, &backend_));
  }
  if (positions > rope_positions_) {
    rope_.Set(RopeTable(config_, positions));
    rope_positions_ = positions;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Exchange>> Worker::MakeExchange(const Configure& message,
                                                               const HeldExperts& experts) {
  {
    absl::MutexLock lock(&mutex_);
    seen_cell_ = message.cell;
    seen_epoch_ = message.epoch;
    if (message.epoch <= ended_epoch_) return absl::AbortedError("the epoch was ended");
    is_making_exchange_ = true;
  }
  absl::StatusOr<std::unique_ptr<Exchange>> exchange =
      exchanges_.Create({.cell = message.cell,
                         .epoch = message.epoch,
                         .self = message.rank,
                         .members = message.members,
                         .key = message.key,
                         .local_index = experts.local_index},
                        {.max_rows = message.max_rows,
                         .experts_per_token = config_.experts_per_token,
                         .row_bytes = config_.hidden * DTypeBytes(DType::kBf16)},
                        now_() + absl::Milliseconds(message.deadline_ms));
  absl::MutexLock lock(&mutex_);
  is_making_exchange_ = false;
  if (!exchange.ok()) return exchange;
  if (message.epoch <= ended_epoch_) return absl::AbortedError("the epoch was ended");
  exchange_ = exchange->get();
  return exchange;
}

void Worker::LeaveEpoch() {
  fence_.Leave();
  {
    absl::MutexLock lock(&mutex_);
    exchange_ = nullptr;
  }
  epoch_.reset();
}

void Worker::Handle(const StepPlan& plan) {
  switch (fence_.Judge(plan)) {
    case Fence::Verdict::kRefuse:
      return Refuse(fence_.refusal());
    case Fence::Verdict::kRepeatResult:
      return send_(last_result_);
    case Fence::Verdict::kObey:
      break;
  }
  Publish("stepping");
  const absl::Time start = now_();
  StepResult result{.term = plan.term, .cell = plan.cell, .epoch = plan.epoch, .step = plan.step};
  result.status = RunStep(plan, start + absl::Milliseconds(plan.deadline_ms), &result);
  result.wait_us = absl::ToInt64Microseconds(epoch_->exchange->TakeWaitTime());
  if (!result.status.ok()) {
    result.suspects = epoch_->exchange->suspects();
    LeaveEpoch();  // Nothing is retried inside an epoch; the peers see our end of it close.
  }
  fence_.Ran(plan.step);
  result.compute_us = absl::ToInt64Microseconds(now_() - start);
  last_result_ = result;
  Publish(epoch_ != nullptr ? "ready" : "enrolled");
  send_(std::move(result));
}

absl::Status Worker::RunStep(const StepPlan& plan, absl::Time deadline, StepResult* result) {
  for (const SequenceId sequence : plan.forget) {
    records_.Forget(sequence);
    lowering_.Forget(sequence);
  }
  if (plan.most_rows > activations_->sizes().max_rows) {
    return absl::InvalidArgumentError(absl::StrCat("a step of ",
                                                   plan.most_rows,
                                                   " rows in an epoch of at most ",
                                                   activations_->sizes().max_rows));
  }
  RETURN_IF_ERROR(lowering_.Lower(plan, records_, &step_));
  const ExchangeShape shape = epoch_->exchange->BeginStep(plan.most_rows);
  try {
    RETURN_IF_ERROR(epoch_->forward->Run(shape, deadline, &step_, &output_));
  } catch (const DeviceFault& fault) {
    absl::MutexLock lock(&mutex_);
    fault_ = absl::UnavailableError(absl::StrCat("the device failed: ", fault.what()));
    return fault_;
  }
  result->logits = std::move(output_.logits);
  return KeepSamples(output_, result);
}

// Sampled tokens are in the record before anyone hears of them.
absl::Status Worker::KeepSamples(const StepOutput& output, StepResult* result) {
  for (size_t i = 0; i < output.samples.size(); ++i) {
    const LoweredStep::Sample& wanted = step_.samples[i];
    const SampleResult& sample = output.samples[i];
    SampledToken token{.sequence = wanted.sequence,
                       .position = wanted.position,
                       .token = TokenId{sample.id},
                       .logprob = sample.logprob,
                       .top = {}};
    for (const SampledLogprob& top : sample.top) {
      token.top.push_back({.token = TokenId{top.id}, .logprob = top.logprob});
    }
    if (sample.id < 0) {
      lowering_.SampleFailed(wanted.sequence);
    } else {
      RETURN_IF_ERROR(records_.Append(wanted.sequence, wanted.position, token.token));
    }
    result->tokens.push_back(std::move(token));
  }
  for (const LoweredStep::Sample& failed : step_.failed_samples) {
    result->tokens.push_back({.sequence = failed.sequence,
                              .position = failed.position,
                              .token = TokenId{-1},
                              .logprob = 0.0f,
                              .top = {}});
  }
  return absl::OkStatus();
}

}  // namespace shoal
