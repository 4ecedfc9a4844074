#include "tests/sim/sim_worker.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"

#include "tests/sim/oracle.h"

namespace shoal::sim {

SimWorker::SimWorker(const SimWorkerOptions& options, std::function<void(std::string)> violation)
    : options_(options), violation_(std::move(violation)) {
  const Block empty(static_cast<size_t>(kPlanBlockTokens), 0);
  full_.assign(static_cast<size_t>(options.num_full_blocks), empty);
  window_.assign(static_cast<size_t>(options.num_window_blocks), empty);
}

std::vector<FromWorker> SimWorker::Receive(const ToWorker& message) {
  std::vector<FromWorker> replies;
  std::optional<FromWorker> reply;
  if (const auto* configure = std::get_if<Configure>(&message)) reply = Obey(*configure);
  if (const auto* abort = std::get_if<Abort>(&message)) reply = Obey(*abort);
  if (const auto* keep = std::get_if<KeepRecord>(&message)) reply = Obey(*keep);
  if (const auto* plan = std::get_if<StepPlan>(&message)) reply = Obey(*plan);
  if (const auto* welcome = std::get_if<Welcome>(&message)) Obey(*welcome);
  if (const auto* load = std::get_if<LoadExperts>(&message)) {
    fence_.Judge(load->term);
    listed_ = {load->experts.begin(), load->experts.end()};
  }
  if (reply.has_value()) replies.push_back(*std::move(reply));
  return replies;
}

ExpertsLoaded SimWorker::FinishLoad(const LoadExperts& request) {
  // Memory beside the experts is for blocks: the more of those, the fewer of these.
  const int32_t fewer = static_cast<int32_t>(request.experts.size()) % 3;
  ExpertsLoaded answer{.cell = request.cell,
                       .placement_version = request.placement_version,
                       .num_full_blocks = options_.num_full_blocks - fewer,
                       .num_window_blocks = options_.num_window_blocks - fewer};
  if (static_cast<int32_t>(request.experts.size()) > options_.max_experts) {
    answer.status = absl::ResourceExhaustedError("no memory for so many experts");
  } else {
    held_.insert(request.experts.begin(), request.experts.end());
  }
  return answer;
}

Refusal SimWorker::Refuse(const absl::Status& why) const {
  return {
      .term = fence_.term(), .epoch = fence_.epoch(), .step = fence_.next_step(), .reason = why};
}

std::optional<FromWorker> SimWorker::Obey(const Configure& message) {
  if (fence_.Judge(message) != Fence::Verdict::kObey) {
    if (options_.is_fenced) return Refuse(fence_.refusal());
    return std::nullopt;
  }
  // Steps are counted per cell.
  if (message.cell != last_cell_) last_obeyed_ = StepId{};
  last_cell_ = message.cell;
  fence_.Enter(message);
  epoch_ = message;
  plans_.clear();
  tables_.clear();
  poisoned_.clear();
  last_result_.reset();
  for (size_t e = 0; e < message.placement.size(); ++e) {
    const std::vector<Rank>& ranks = message.placement[e];
    if (ranks.empty()) violation_(absl::StrCat("placement: nobody holds expert ", e));
    const bool is_mine = std::count(ranks.begin(), ranks.end(), message.rank) > 0;
    if (is_mine && !held_.contains(ExpertId{static_cast<int32_t>(e)})) {
      violation_(absl::StrCat("placement: expert ", e, " is not loaded"));
    }
  }
  return std::nullopt;
}

void SimWorker::ExchangeBuilt() {
  std::erase_if(held_, [&](ExpertId expert) {
    const std::vector<Rank>& ranks = epoch_->placement[static_cast<size_t>(expert.value)];
    const bool is_mine = std::count(ranks.begin(), ranks.end(), epoch_->rank) > 0;
    return !is_mine && !listed_.contains(expert);
  });
}

void SimWorker::Leave() {
  fence_.Leave();
  epoch_.reset();
  plans_.clear();
  last_result_.reset();
}

// A new member: its records come again.
void SimWorker::Obey(const Welcome& message) {
  if (fence_.Judge(message.term) != Fence::Verdict::kObey) return;
  Leave();
  records_.ForgetAll();
}

std::optional<FromWorker> SimWorker::Obey(const Abort& message) {
  if (fence_.Judge(message) != Fence::Verdict::kObey) return Refuse(fence_.refusal());
  Leave();
  return std::nullopt;
}

std::optional<FromWorker> SimWorker::Obey(const KeepRecord& message) {
  const absl::Status status = fence_.Judge(message.term) == Fence::Verdict::kObey
                                  ? records_.Keep(message)
                                  : fence_.refusal();
  if (status.ok()) return std::nullopt;
  if (absl::IsDataLoss(status)) violation_(absl::StrCat("record: ", status.ToString()));
  return Refuse(status);
}

std::optional<FromWorker> SimWorker::Obey(const StepPlan& message) {
  Fence::Verdict verdict = fence_.Judge(message);
  if (!options_.is_fenced && epoch_.has_value() && plans_.size() < 2) {
    verdict = Fence::Verdict::kObey;
  }
  if (verdict == Fence::Verdict::kRefuse) return Refuse(fence_.refusal());
  if (verdict == Fence::Verdict::kRepeatResult) {
    if (last_result_.has_value()) return *last_result_;
    return std::nullopt;
  }
  if (message.step <= last_obeyed_ || message.epoch != epoch_->epoch) {
    violation_(absl::StrCat("fence: obeyed step ",
                            message.step.value,
                            " of epoch ",
                            message.epoch.value,
                            " after step ",
                            last_obeyed_.value,
                            " in epoch ",
                            epoch_->epoch.value));
  }
  last_obeyed_ = message.step;
  plans_.push_back(message);
  return std::nullopt;
}

StepResult SimWorker::Run() {
  const StepPlan plan = std::move(plans_.front());
  plans_.pop_front();
  StepResult result{.term = plan.term, .cell = plan.cell, .epoch = plan.epoch, .step = plan.step};
  for (const PlanEntry& entry : plan.entries) {
    const Record* const record = records_.Find(entry.sequence);
    if (record == nullptr || !IsRejected(record->sampling)) continue;
    result.status = absl::InvalidArgumentError("sim: settings that nobody can sample with");
    Leave();
    return result;
  }
  for (const PlanEntry& entry : plan.entries) Compute(entry, &result);
  for (const SequenceId sequence : plan.forget) {
    records_.Forget(sequence);
    tables_.erase(sequence);
  }
  if (options_.is_fenced) fence_.Ran(plan.step);
  last_result_ = result;
  return result;
}

uint64_t* SimWorker::At(std::vector<Block>* blocks,
                        const std::vector<BlockId>& table,
                        int32_t position) {
  const size_t index = static_cast<size_t>(position / kPlanBlockTokens);
  if (index >= table.size()) return nullptr;
  const BlockId block = table[index];
  if (block.value < 0 || static_cast<size_t>(block.value) >= blocks->size()) return nullptr;
  return &(
      *blocks)[static_cast<size_t>(block.value)][static_cast<size_t>(position % kPlanBlockTokens)];
}

void SimWorker::Compute(const PlanEntry& entry, StepResult* result) {
  const Record* const record = records_.Find(entry.sequence);
  const int32_t end = entry.first_position + entry.num_positions;
  // Planned before the coordinator knew that its last token cannot be sampled.
  if (poisoned_.contains(entry.sequence)) return;
  if (record == nullptr || static_cast<int32_t>(record->tokens.size()) < end) {
    violation_(absl::StrCat("record: sequence ",
                            entry.sequence.value,
                            " lacks tokens before ",
                            end,
                            record == nullptr ? ", no record" : ""));
    return;
  }
  Table& table = tables_[entry.sequence];
  const size_t first_block = static_cast<size_t>(entry.first_block);
  if (first_block > table.full.size() || entry.full_blocks.size() != entry.window_blocks.size()) {
    violation_(absl::StrCat("table: a gap at block ", entry.first_block));
    return;
  }
  table.full.resize(first_block);
  table.window.resize(first_block);
  table.full.insert(table.full.end(), entry.full_blocks.begin(), entry.full_blocks.end());
  table.window.insert(table.window.end(), entry.window_blocks.begin(), entry.window_blocks.end());

  const std::vector<uint64_t> prefixes = Prefixes({record->tokens.data(), record->tokens.size()});
  for (int32_t p = entry.first_position; p < end; ++p) {
    uint64_t* const full = At(&full_, table.full, p);
    if (full == nullptr) {
      violation_(absl::StrCat("table: no block for position ", p));
      return;
    }
    *full = prefixes[static_cast<size_t>(p)];
    if (options_.window == 0) continue;
    uint64_t* const window = At(&window_, table.window, p);
    if (window == nullptr) {
      violation_(absl::StrCat("table: no window block for position ", p));
      return;
    }
    *window = prefixes[static_cast<size_t>(p)];
  }
  CheckReads(entry, prefixes);
  if (entry.wants_logits) {
    result->logits.push_back({.sequence = entry.sequence,
                              .first_position = entry.first_position,
                              .num_positions = entry.num_positions});
    for (int32_t p = entry.first_position; p < end; ++p) {
      result->logits.back().values.push_back(
          static_cast<float>(prefixes[static_cast<size_t>(p)] % 1000));
    }
  }
  if (!entry.wants_sample) return;
  // Every token of a constrained sequence obeys the mask of what is before it.
  const bool is_constrained = record->envelope == kConstrainedEnvelope;
  const std::span<const TokenId> output(record->tokens.begin() + record->prompt_length,
                                        record->tokens.begin() + end);
  if (entry.mask != (is_constrained ? MaskAfter(output) : TokenMask())) {
    violation_(absl::StrCat("mask: sequence ",
                            entry.sequence.value,
                            " is sampled at ",
                            end,
                            " with the mask of another place"));
    return;
  }
  const TokenId token = NextToken(prefixes[static_cast<size_t>(end - 1)],
                                  end - record->prompt_length,
                                  record->sampling,
                                  entry.mask);
  if (token.value < 0) {
    poisoned_.insert(entry.sequence);
  } else {
    const absl::Status status = records_.Append(entry.sequence, end, token);
    if (!status.ok()) violation_(absl::StrCat("record: ", status.ToString()));
  }
  result->tokens.push_back({.sequence = entry.sequence, .position = end, .token = token});
}

// Every position that the entry's rows see holds this very sequence's K/V.
void SimWorker::CheckReads(const PlanEntry& entry, const std::vector<uint64_t>& prefixes) {
  Table& table = tables_[entry.sequence];
  const int32_t end = entry.first_position + entry.num_positions;
  for (int32_t p = 0; p < end; ++p) {
    const uint64_t* const full = At(&full_, table.full, p);
    if (full == nullptr || *full != prefixes[static_cast<size_t>(p)]) {
      violation_(absl::StrCat("content: sequence ",
                              entry.sequence.value,
                              " reads position ",
                              p,
                              " of the full layers and finds another's"));
      return;
    }
    const bool is_visible = options_.window > 0 && p > entry.first_position - options_.window;
    if (!is_visible) continue;
    const uint64_t* const window = At(&window_, table.window, p);
    if (window == nullptr || *window != prefixes[static_cast<size_t>(p)]) {
      violation_(absl::StrCat("content: sequence ",
                              entry.sequence.value,
                              " reads position ",
                              p,
                              " of the window layers and finds another's"));
      return;
    }
  }
}

}  // namespace shoal::sim
