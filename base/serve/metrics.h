// A registry of metrics and its text for Prometheus. The only place that calls prometheus-cpp,
// whose own listener is not used: it would be a web server of its own.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace shoal {

using MetricLabels = std::map<std::string, std::string>;

// Thread-safe, as are the metrics, which live as long as this.
class Metrics {
 public:
  class Counter {
   public:
    virtual ~Counter() = default;
    virtual void Add(double amount) = 0;
    // To a count that is kept elsewhere and never falls; one thread at a time.
    virtual void RaiseTo(double value) = 0;
  };

  class Gauge {
   public:
    virtual ~Gauge() = default;
    virtual void Set(double value) = 0;
  };

  class Histogram {
   public:
    virtual ~Histogram() = default;
    virtual void Observe(double value) = 0;
  };

  Metrics();
  ~Metrics();

  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The same name may be added again with other labels; help is that of the first.
  Counter* AddCounter(const std::string& name, const std::string& help, const MetricLabels& labels);
  Gauge* AddGauge(const std::string& name, const std::string& help, const MetricLabels& labels);
  // `bounds` rise: the upper ends of all buckets but the last.
  Histogram* AddHistogram(const std::string& name,
                          const std::string& help,
                          const std::vector<double>& bounds);

  // In the text format, version 0.0.4.
  std::string Text() const;

 private:
  struct Registry;
  std::unique_ptr<Registry> registry_;
};

}  // namespace shoal
