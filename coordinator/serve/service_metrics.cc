#include "coordinator/serve/service_metrics.h"

#include <vector>

namespace shoal {
namespace {

// Those of OpenTelemetry's server metrics, and 20 ms.
const std::vector<double>& LatencyBounds() {
  static const auto* const bounds = new std::vector<double>{
      0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60};
  return *bounds;
}

const std::vector<double>& LengthBounds() {
  static const auto* const bounds = new std::vector<double>{
      1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072};
  return *bounds;
}

const char* NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kStopString:
      return "stop_string";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

}  // namespace

ServiceMetrics::ServiceMetrics() {
  const auto gauge = [this](const char* name, const char* help) {
    return metrics_.AddGauge(name, help, {});
  };
  const auto counter = [this](const char* name, const char* help) {
    return metrics_.AddCounter(name, help, {});
  };
  running_ = gauge("shoal_sequences_running", "Sequences that have a home");
  waiting_ = gauge("shoal_sequences_waiting", "Sequences that wait for one");
  kv_used_ratio_ = gauge("shoal_kv_used_ratio", "Of the blocks of full-attention layers, 0 to 1");
  workers_ = gauge("shoal_workers", "Workers with a rank");
  is_ready_ = gauge("shoal_ready", "1 while steps can run");
  streams_ = gauge("shoal_streams_open", "Answers that are being read, by gRPC or HTTP");
  connections_ = gauge("shoal_http_connections", "Open HTTP connections");
  prompt_tokens_ = counter("shoal_prompt_tokens_total", "Of accepted requests");
  cached_tokens_ = counter("shoal_cached_prompt_tokens_total", "Of them, from the prefix cache");
  output_tokens_ = counter("shoal_tokens_accepted_total", "Output tokens");
  preemptions_ = counter("shoal_preemptions_total", "Sequences that lost their blocks");
  epochs_ = counter("shoal_epochs_total", "Memberships of cells");
  accepted_ = counter("shoal_requests_accepted_total", "Requests taken in");
  refused_ = counter("shoal_requests_refused_total", "Requests that cannot or must not run");
  parked_ = counter("shoal_slow_readers_parked_total", "Times that a reader fell behind");
  for (int i = 0; i < kNumReasons; ++i) {
    finished_[static_cast<size_t>(i)] =
        metrics_.AddCounter("shoal_choices_finished_total",
                            "Choices by how they ended",
                            {{"finish_reason", NameOf(static_cast<FinishReason>(i))}});
  }
  for (int i = 0; i < kNumRepairs; ++i) {
    repairs_[static_cast<size_t>(i)] =
        metrics_.AddCounter("shoal_harmony_repairs_total",
                            "Malformed output that was understood all the same, by kind",
                            {{"kind", std::string(RepairName(static_cast<Repair>(i)))}});
  }
  const auto latency = [this](const char* name, const char* help) {
    return metrics_.AddHistogram(name, help, LatencyBounds());
  };
  ttft_ = latency("shoal_ttft_seconds", "Arrival to first token");
  itl_ = latency("shoal_itl_seconds", "From one token of a choice to its next");
  e2e_ = latency("shoal_e2e_seconds", "Arrival to end");
  queue_ = latency("shoal_queue_seconds", "Arrival to first step");
  prefill_ = latency("shoal_prefill_seconds", "First step to first token");
  prompt_length_ = metrics_.AddHistogram("shoal_prompt_tokens", "Of a choice", LengthBounds());
  output_length_ = metrics_.AddHistogram("shoal_output_tokens", "Of a choice", LengthBounds());
}

void ServiceMetrics::OnFinish(const Finish& finish) {
  finished_[static_cast<size_t>(finish.reason)]->Add(1);
  prompt_length_->Observe(finish.usage.prompt_tokens);
  output_length_->Observe(finish.usage.completion_tokens);
  e2e_->Observe(absl::ToDoubleSeconds(finish.timings.total));
  if (finish.usage.completion_tokens == 0) return;
  const Timings& timings = finish.timings;
  queue_->Observe(absl::ToDoubleSeconds(timings.queue));
  ttft_->Observe(absl::ToDoubleSeconds(timings.first_token));
  prefill_->Observe(absl::ToDoubleSeconds(timings.first_token - timings.queue));
}

void ServiceMetrics::Observe(const FleetStatus& fleet, const Streams& streams) {
  int64_t used = 0, total = 0, ranks = 0;
  for (const CellStatus& cell : fleet.cells) {
    for (const WorkerStatus& worker : cell.workers) {
      used += worker.full_blocks_used;
      total += worker.full_blocks;
      if (worker.rank.value >= 0) ++ranks;
    }
  }
  running_->Set(fleet.running);
  waiting_->Set(fleet.waiting);
  kv_used_ratio_->Set(total == 0 ? 0 : static_cast<double>(used) / static_cast<double>(total));
  workers_->Set(static_cast<double>(ranks));
  is_ready_->Set(fleet.is_ready ? 1 : 0);
  streams_->Set(static_cast<double>(streams.open));
  connections_->Set(static_cast<double>(streams.http_connections));
  prompt_tokens_->RaiseTo(static_cast<double>(fleet.prompt_tokens));
  cached_tokens_->RaiseTo(static_cast<double>(fleet.cached_tokens));
  output_tokens_->RaiseTo(static_cast<double>(fleet.output_tokens));
  preemptions_->RaiseTo(static_cast<double>(fleet.preemptions));
  epochs_->RaiseTo(static_cast<double>(fleet.epochs));
  accepted_->RaiseTo(static_cast<double>(fleet.accepted));
  refused_->RaiseTo(static_cast<double>(fleet.refused));
  parked_->RaiseTo(static_cast<double>(streams.parked));
}

std::string ServiceMetrics::Text(const FleetStatus& fleet, const Streams& streams) {
  absl::MutexLock lock(&observe_mutex_);
  Observe(fleet, streams);
  return metrics_.Text();
}

}  // namespace shoal
