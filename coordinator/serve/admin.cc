#include "coordinator/serve/admin.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace shoal {
namespace {

// A message holds whole rows, and stays within the limit for internal messages.
constexpr int64_t kMaxValuesPerMessage = (4 << 20) / sizeof(float);

void Set(const WorkerStatus& status, v1::WorkerState* out) {
  out->set_worker(status.worker.value);
  out->set_incarnation(status.incarnation.value);
  out->set_host(status.host);
  out->set_process(status.process);
  out->set_phase(status.phase);
  out->set_cell(status.cell.value);
  out->set_rank(status.rank.value);
  out->set_full_blocks(status.full_blocks);
  out->set_full_blocks_used(status.full_blocks_used);
  out->set_window_blocks(status.window_blocks);
  out->set_window_blocks_used(status.window_blocks_used);
  out->set_full_blocks_cached(status.full_blocks_cached);
  out->set_sequences(status.sequences);
  out->set_load_done_bytes(status.load_done_bytes);
  out->set_load_total_bytes(status.load_total_bytes);
  out->set_resident_bytes(status.resident_bytes);
  out->set_silent_us(absl::ToInt64Microseconds(status.silent_for));
}

// The rows of one prompt; its single sampled token is of no interest.
class LogitsTranscript final : public Transcript {
 public:
  explicit LogitsTranscript(std::string request_id) : request_id_(std::move(request_id)) {}

  Output Write(const std::vector<Action>& actions) override {
    Output out;
    for (const Action& action : actions) {
      if (const auto* logits = std::get_if<EmitLogits>(&action)) {
        Write(logits->rows, &out);
      } else if (const auto* refuse = std::get_if<Refuse>(&action)) {
        out.end = refuse->status;
      } else if (const auto* finish = std::get_if<Finish>(&action)) {
        out.end = EndOf(*finish);
      }
    }
    return out;
  }

  std::vector<ClientAttached> Resume() const override { return {}; }

  std::optional<Event> Abandon() const override { return std::nullopt; }

  const std::string& request_id() const override { return request_id_; }

  int64_t num_tokens() const override { return num_rows_; }

 private:
  static absl::Status EndOf(const Finish& finish) {
    switch (finish.reason) {
      case FinishReason::kStop:
      case FinishReason::kStopString:
      case FinishReason::kLength:
        return absl::OkStatus();
      case FinishReason::kCancelled:
        return absl::CancelledError("the request was cancelled");
      case FinishReason::kDeadline:
        return absl::DeadlineExceededError("the request's deadline passed");
      case FinishReason::kError:
        return finish.error;
    }
    return absl::OkStatus();
  }

  void Write(const LogitRows& rows, Output* out) {
    if (rows.num_positions <= 0) return;
    num_rows_ += rows.num_positions;
    const int64_t vocab = std::ssize(rows.values) / rows.num_positions;
    const int64_t rows_per_message =
        std::max<int64_t>(1, kMaxValuesPerMessage / std::max<int64_t>(1, vocab));
    for (int64_t first = 0; first < rows.num_positions; first += rows_per_message) {
      const int64_t count = std::min<int64_t>(rows_per_message, rows.num_positions - first);
      v1::LogitsResponse message;
      message.set_first_position(rows.first_position + static_cast<int32_t>(first));
      message.set_num_positions(static_cast<int32_t>(count));
      const float* begin = rows.values.data() + first * vocab;
      message.mutable_values()->Add(begin, begin + count * vocab);
      out->messages.push_back(message.SerializeAsString());
    }
  }

  const std::string request_id_;
  int64_t num_rows_ = 0;
};

}  // namespace

v1::StatusResponse ToProto(const FleetStatus& status) {
  v1::StatusResponse out;
  out.set_term(status.term.value);
  for (const CellStatus& cell : status.cells) {
    v1::CellState* state = out.add_cells();
    state->set_cell(cell.cell.value);
    state->set_epoch(cell.epoch.value);
    state->set_step(cell.step.value);
    state->set_state(cell.state);
    for (const WorkerStatus& worker : cell.workers) Set(worker, state->add_workers());
    state->set_min_replicas(cell.min_replicas);
  }
  for (const WorkerStatus& worker : status.spare_workers) Set(worker, out.add_spare_workers());
  out.set_waiting(status.waiting);
  out.set_running(status.running);
  out.set_retained(status.retained);
  out.set_accepted(status.accepted);
  out.set_refused(status.refused);
  out.set_finished(status.finished);
  out.set_preemptions(status.preemptions);
  out.set_epochs(status.epochs);
  out.set_prompt_tokens(status.prompt_tokens);
  out.set_cached_tokens(status.cached_tokens);
  out.set_output_tokens(status.output_tokens);
  out.set_is_ready(status.is_ready);
  return out;
}

grpc::ServerUnaryReactor* AdminFrontend::Status(grpc::CallbackServerContext* context,
                                                const v1::StatusRequest* request,
                                                v1::StatusResponse* response) {
  static_cast<void>(request);
  const absl::StatusOr<FleetStatus> fleet = service_.loop->Status();
  if (fleet.ok()) *response = ToProto(*fleet);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(fleet.status()));
  return reactor;
}

GrpcReactor* AdminFrontend::Logits(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* bytes) {
  v1::LogitsRequest wire;
  if (absl::Status status = ParseBytes(*bytes, &wire); !status.ok()) return RefuseCall(status);
  absl::StatusOr<std::vector<TokenId>> prompt =
      ParseTokens("token_ids", wire.token_ids(), service_.model);
  if (!prompt.ok()) return RefuseCall(prompt.status());
  absl::StatusOr<Request> request =
      ParseLogitsRequest(*std::move(prompt), service_.model, absl::Now(), service_.NextEntropy());
  if (!request.ok()) return RefuseCall(request.status());
  auto transcript = std::make_unique<LogitsTranscript>(request->id);
  return StartCall(&service_, context, "Logits", *std::move(request), std::move(transcript));
}

}  // namespace shoal
