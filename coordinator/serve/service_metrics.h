// What the coordinator counts for its operators, by name. docs/api.md lists the names.
#pragma once

#include <array>
#include <string>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "base/serve/metrics.h"
#include "coordinator/coordinator.h"
#include "coordinator/events.h"
#include "coordinator/text/harmony.h"

namespace shoal {

// Thread-safe.
class ServiceMetrics {
 public:
  ServiceMetrics();

  // A token came so long after the one before it in its choice.
  void OnToken(absl::Duration since_last) { itl_->Observe(absl::ToDoubleSeconds(since_last)); }

  // A choice ended, as its first reader was told.
  void OnFinish(const Finish& finish);

  void OnRepair(Repair repair) { repairs_[static_cast<size_t>(repair)]->Add(1); }

  // Of Delivery and the HTTP server.
  struct Streams {
    int64_t open = 0;
    int64_t parked = 0;  // Times
    int64_t http_connections = 0;
  };

  // For Prometheus, with the core's own figures.
  std::string Text(const FleetStatus& fleet, const Streams& streams);

 private:
  static constexpr int kNumReasons = static_cast<int>(FinishReason::kError) + 1;

  void Observe(const FleetStatus& fleet, const Streams& streams);

  Metrics metrics_;
  absl::Mutex observe_mutex_;  // Held from the first figure to the last letter

  Metrics::Gauge* running_;
  Metrics::Gauge* waiting_;
  Metrics::Gauge* kv_used_ratio_;
  Metrics::Gauge* workers_;
  Metrics::Gauge* is_ready_;
  Metrics::Gauge* streams_;
  Metrics::Gauge* connections_;
  Metrics::Counter* prompt_tokens_;
  Metrics::Counter* cached_tokens_;
  Metrics::Counter* output_tokens_;
  Metrics::Counter* preemptions_;
  Metrics::Counter* epochs_;
  Metrics::Counter* accepted_;
  Metrics::Counter* refused_;
  Metrics::Counter* parked_;
  std::array<Metrics::Counter*, kNumReasons> finished_;
  std::array<Metrics::Counter*, kNumRepairs> repairs_;
  Metrics::Histogram* ttft_;
  Metrics::Histogram* itl_;
  Metrics::Histogram* e2e_;
  Metrics::Histogram* queue_;
  Metrics::Histogram* prefill_;
  Metrics::Histogram* prompt_length_;
  Metrics::Histogram* output_length_;
};

}  // namespace shoal
