#include "base/serve/metrics.h"

#include <deque>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"

namespace shoal {
namespace {

class PrometheusCounter final : public Metrics::Counter {
 public:
  explicit PrometheusCounter(prometheus::Counter* counter) : counter_(*counter) {}

  void Add(double amount) override { counter_.Increment(amount); }

  void RaiseTo(double value) override { counter_.Increment(value - counter_.Value()); }

 private:
  prometheus::Counter& counter_;
};

class PrometheusGauge final : public Metrics::Gauge {
 public:
  explicit PrometheusGauge(prometheus::Gauge* gauge) : gauge_(*gauge) {}

  void Set(double value) override { gauge_.Set(value); }

 private:
  prometheus::Gauge& gauge_;
};

class PrometheusHistogram final : public Metrics::Histogram {
 public:
  explicit PrometheusHistogram(prometheus::Histogram* histogram) : histogram_(*histogram) {}

  void Observe(double value) override { histogram_.Observe(value); }

 private:
  prometheus::Histogram& histogram_;
};

}  // namespace

struct Metrics::Registry {
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  absl::Mutex mutex;  // Deques, because what is given out must not move
  std::deque<PrometheusCounter> counters ABSL_GUARDED_BY(mutex);
  std::deque<PrometheusGauge> gauges ABSL_GUARDED_BY(mutex);
  std::deque<PrometheusHistogram> histograms ABSL_GUARDED_BY(mutex);
};

Metrics::Metrics() : registry_(std::make_unique<Registry>()) {}

Metrics::~Metrics() = default;

Metrics::Counter* Metrics::AddCounter(const std::string& name,
                                      const std::string& help,
                                      const MetricLabels& labels) {
  absl::MutexLock lock(&registry_->mutex);
  auto& family = prometheus::BuildCounter().Name(name).Help(help).Register(registry_->registry);
  return &registry_->counters.emplace_back(&family.Add(labels));
}

Metrics::Gauge* Metrics::AddGauge(const std::string& name,
                                  const std::string& help,
                                  const MetricLabels& labels) {
  absl::MutexLock lock(&registry_->mutex);
  auto& family = prometheus::BuildGauge().Name(name).Help(help).Register(registry_->registry);
  return &registry_->gauges.emplace_back(&family.Add(labels));
}

Metrics::Histogram* Metrics::AddHistogram(const std::string& name,
                                          const std::string& help,
                                          const std::vector<double>& bounds) {
  absl::MutexLock lock(&registry_->mutex);
  auto& family = prometheus::BuildHistogram().Name(name).Help(help).Register(registry_->registry);
  return &registry_->histograms.emplace_back(&family.Add({}, bounds));
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(registry_->registry.Collect());
}

}  // namespace shoal
