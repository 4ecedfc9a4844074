#include "tests/coordinator/serve/fake_worker.h"

#include <utility>
#include <variant>

#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "base/check.h"

namespace shoal {

FakeWorker::FakeWorker(Options options) : options_(std::move(options)) {
  stub_ = fleet::v1::WorkerLink::NewStub(
      grpc::CreateChannel(options_.address, grpc::InsecureChannelCredentials()));
  stream_ = stub_->Link(&context_);
  Send(Enrol{.worker = options_.worker,
             .incarnation = options_.incarnation,
             .numerics = {.version = "test",
                          .checkpoint_digest = options_.digest,
                          .backend = "fake",
                          .numerics_version = 1},
             .host = "here",
             .exchange_endpoint = "local:0",
             .process = "a thread",
             .highest_term = {0},
             .memory_bytes = int64_t{1} << 30,
             .dense_bytes = 1,
             .expert_bytes = 1,
             .num_experts = 8,
             .num_layers = 4});
  reader_ = std::thread([this] { Read(); });
  beats_ = std::thread([this] { SendBeats(); });
}

FakeWorker::~FakeWorker() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  context_.TryCancel();
  reader_.join();
  beats_.join();
}

void FakeWorker::Hold(int32_t index) {
  absl::MutexLock lock(&mutex_);
  held_from_ = index;
}

absl::Status FakeWorker::WaitForEnd() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&has_ended_));
  return dismissal_.ok() ? end_ : dismissal_;
}

void FakeWorker::Send(const FromWorker& message) {
  absl::MutexLock lock(&write_mutex_);
  for (const fleet::v1::FromWorker& part : ToProto(message)) stream_->Write(part);
}

void FakeWorker::SendBeats() {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), absl::Milliseconds(200))) return;
    }
    Send(Beat{.phase = "ready"});
  }
}

void FakeWorker::Read() {
  fleet::v1::ToWorker wire;
  while (stream_->Read(&wire)) {
    const absl::StatusOr<ToWorker> message = FromProto(wire);
    CHECK(message.ok());
    Do(*message);
  }
  const grpc::Status status = stream_->Finish();
  absl::MutexLock lock(&mutex_);
  end_ = absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  has_ended_ = true;
}

void FakeWorker::Do(const ToWorker& message) {
  if (const auto* load = std::get_if<LoadExperts>(&message)) {
    Send(ExpertsLoaded{.cell = load->cell,
                       .placement_version = load->placement_version,
                       .status = absl::OkStatus(),
                       .num_full_blocks = options_.num_full_blocks,
                       .num_window_blocks = options_.num_full_blocks});
  } else if (const auto* configure = std::get_if<Configure>(&message)) {
    Send(Ready{.term = configure->term,
               .cell = configure->cell,
               .epoch = configure->epoch,
               .status = absl::OkStatus(),
               .suspects = {}});
  } else if (const auto* keep = std::get_if<KeepRecord>(&message)) {
    Record& record = records_[keep->sequence];
    if (keep->index == 0) record = Record{.first = *keep, .tokens = {}};
    record.tokens.resize(static_cast<size_t>(keep->index));
    record.tokens.insert(record.tokens.end(), keep->tokens.begin(), keep->tokens.end());
  } else if (const auto* plan = std::get_if<StepPlan>(&message)) {
    Run(*plan);
  } else if (const auto* dismiss = std::get_if<Dismiss>(&message)) {
    absl::MutexLock lock(&mutex_);
    dismissal_ = dismiss->reason;
  }
}

void FakeWorker::Run(const StepPlan& plan) {
  StepResult result;
  result.term = plan.term;
  result.cell = plan.cell;
  result.epoch = plan.epoch;
  result.step = plan.step;
  for (const PlanEntry& entry : plan.entries) {
    if (entry.wants_sample) Sample(entry, &result);
    if (!entry.wants_logits) continue;
    LogitRows& rows = result.logits.emplace_back();
    rows.sequence = entry.sequence;
    rows.first_position = entry.first_position;
    rows.num_positions = entry.num_positions;
    for (int32_t p = 0; p < entry.num_positions; ++p) {
      for (int32_t v = 0; v < options_.vocab; ++v) {
        rows.values.push_back(static_cast<float>((entry.first_position + p) * 1000 + v));
      }
    }
  }
  for (const SequenceId sequence : plan.forget) records_.erase(sequence);
  Send(result);
}

void FakeWorker::Sample(const PlanEntry& entry, StepResult* result) {
  Record& record = records_.at(entry.sequence);
  const int32_t position = entry.first_position + entry.num_positions;
  const int32_t index = position - record.first.prompt_length;
  {
    absl::MutexLock lock(&mutex_);
    const auto may_go_on = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return index < held_from_ || is_stopping_;
    };
    mutex_.Await(absl::Condition(&may_go_on));
  }
  CHECK_LE(static_cast<size_t>(position), record.tokens.size());
  if (static_cast<size_t>(position) == record.tokens.size()) {
    // Its wish, or the next id that the mask allows.
    TokenId token = options_.next(record.first, index);
    const std::vector<uint32_t> allowed = UnpackMask(entry.mask, options_.vocab);
    const auto is_refused = [&] {
      const auto id = static_cast<size_t>(token.value);
      return !entry.mask.runs.empty() && (allowed[id / 32] >> (id % 32) & 1u) == 0;
    };
    while (is_refused()) token.value = (token.value + 1) % options_.vocab;
    record.tokens.push_back(token);
  }
  SampledToken sampled{.sequence = entry.sequence,
                       .position = position,
                       .token = record.tokens[static_cast<size_t>(position)],
                       .logprob = -0.5f,
                       .top = {}};
  for (int32_t i = 0; i < record.first.sampling.num_top_logprobs; ++i) {
    sampled.top.push_back({.token = {i}, .logprob = -static_cast<float>(i) - 0.5f});
  }
  result->tokens.push_back(std::move(sampled));
}

}  // namespace shoal
