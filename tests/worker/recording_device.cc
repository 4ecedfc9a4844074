#include "tests/worker/recording_device.h"

#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

#include "base/check.h"
#include "tests/support/forwarding_backend.h"
#include "worker/exchange/host_stream.h"

namespace shoal {

// What is shared by the backend and the exchange's stream.
class RecordingQueue {
 public:
  // `run` each time that it is done, `done` when it will not be again.
  struct Work {
    std::function<void()> run, done;
  };

  explicit RecordingQueue(std::unique_ptr<Backend> cpu) : cpu_(std::move(cpu)) {
    abi_.enqueue =
        [](ShoalHostStream* self, void (*run)(void*), void (*done)(void*), void* argument) {
          static_cast<Abi*>(self)->queue->Enqueue({.run = [run, argument] { run(argument); },
                                                   .done = [done, argument] { done(argument); }});
        };
    abi_.is_recording = [](ShoalHostStream* self) {
      return static_cast<Abi*>(self)->queue->is_recording() ? 1 : 0;
    };
    abi_.queue = this;
  }

  Backend& cpu() { return *cpu_; }

  DeviceStream& stream() { return *stream_; }

  ShoalHostStream* handle() { return &abi_; }

  // Thread-safe.
  void Enqueue(Work work) {
    {
      absl::MutexLock lock(&mutex_);
      if (is_recording_) return recorded_.push_back(std::move(work));
    }
    Start(std::move(work));
  }

  bool is_recording() const {
    absl::MutexLock lock(&mutex_);
    return is_recording_;
  }

  void Await() {
    CHECK(!is_recording());
    while (!*stream_->Wait(absl::Seconds(1))) {
    }
  }

  void BeginRecording() {
    absl::MutexLock lock(&mutex_);
    is_recording_ = true;
  }

  std::vector<Work> EndRecording() {
    absl::MutexLock lock(&mutex_);
    is_recording_ = false;
    return std::exchange(recorded_, {});
  }

  DeviceCounts counts;

 private:
  struct Abi : ShoalHostStream {
    RecordingQueue* queue = nullptr;
  };

  void Start(Work work) {
    auto* const inner = static_cast<ShoalHostStream*>(stream_->handle());
    const auto run = [](void* argument) { static_cast<Work*>(argument)->run(); };
    const auto done = [](void* argument) {
      const std::unique_ptr<Work> owned(static_cast<Work*>(argument));
      if (owned->done != nullptr) owned->done();
    };
    inner->enqueue(inner, run, done, new Work(std::move(work)));
  }

  const std::unique_ptr<Backend> cpu_;
  Abi abi_;
  mutable absl::Mutex mutex_;
  bool is_recording_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Work> recorded_ ABSL_GUARDED_BY(mutex_);
  const std::unique_ptr<DeviceStream> stream_ = MakeHostStream();
};

namespace {

class RecordedBackend final : public ForwardingBackend {
 public:
  explicit RecordedBackend(std::shared_ptr<RecordingQueue> queue)
      : ForwardingBackend(&queue->cpu()), queue_(std::move(queue)) {}

  ~RecordedBackend() override {
    ForgetReplays();
    queue_->Await();
  }

  void* Allocate(size_t bytes) override {
    CHECK(!queue_->is_recording());
    return inner_.Allocate(bytes);
  }

  // Recordings may name it.
  void Free(void* data, size_t bytes) override {
    CHECK(!queue_->is_recording());
    if (!kept_.empty()) return retired_.push_back({data, bytes});
    queue_->Await();
    inner_.Free(data, bytes);
  }

  void Write(void* device, const void* host, size_t bytes) override {
    CHECK(!queue_->is_recording());
    const auto* from = static_cast<const std::byte*>(host);
    Enqueue([device, copy = std::vector<std::byte>(from, from + bytes)](Backend& cpu) {
      cpu.Write(device, copy.data(), copy.size());
    });
  }

  void Read(void* host, const void* device, size_t bytes) override {
    Enqueue([=](Backend& cpu) { cpu.Read(host, device, bytes); });
    Synchronize();
  }

  void Synchronize() override {
    ++queue_->counts.reads;
    queue_->Await();
  }

  bool Replay(uint64_t key, const std::function<bool()>& ops) override {
    if (key == 0) return ops();
    if (was_run_.insert(key).second) return ops();
    auto kept = kept_.find(key);
    if (kept == kept_.end()) {
      queue_->BeginRecording();
      const bool is_whole = ops();
      std::vector<RecordingQueue::Work> recording = queue_->EndRecording();
      ++queue_->counts.records;
      if (!is_whole) {
        Drop(std::move(recording));
        return false;
      }
      ++queue_->counts.kept;
      kept = kept_.emplace(key, std::move(recording)).first;
    }
    ++queue_->counts.replays;
    for (const RecordingQueue::Work& work : kept->second) {
      queue_->Enqueue({.run = work.run, .done = nullptr});
    }
    return true;
  }

  void ForgetReplays() override {
    for (auto& [key, recording] : kept_) {
      Drop(std::move(recording));
      --queue_->counts.kept;
    }
    kept_.clear();
    was_run_.clear();
    if (retired_.empty()) return;
    queue_->Await();
    for (const auto& [data, bytes] : std::exchange(retired_, {})) inner_.Free(data, bytes);
  }

  void Embed(const EmbedArgs& args) override { Queue(&Backend::Embed, args); }

  void RmsNorm(const RmsNormArgs& args) override { Queue(&Backend::RmsNorm, args); }

  void Linear(const LinearArgs& args) override { Queue(&Backend::Linear, args); }

  void RopeAndAppend(const RopeAndAppendArgs& args) override {
    Queue(&Backend::RopeAndAppend, args);
  }

  void Attention(const AttentionArgs& args) override { Queue(&Backend::Attention, args); }

  void SelectExperts(const SelectExpertsArgs& args) override {
    Queue(&Backend::SelectExperts, args);
  }

  void GroupByExpert(const GroupByExpertArgs& args) override {
    Queue(&Backend::GroupByExpert, args);
  }

  void FillSlots(const FillSlotsArgs& args) override { Queue(&Backend::FillSlots, args); }

  void GroupSlots(const GroupSlotsArgs& args) override { Queue(&Backend::GroupSlots, args); }

  void PickRows(const PickRowsArgs& args) override { Queue(&Backend::PickRows, args); }

  void SumSlots(const SumSlotsArgs& args) override { Queue(&Backend::SumSlots, args); }

  void ExpertMlp(const ExpertMlpArgs& args) override { Queue(&Backend::ExpertMlp, args); }

  void Sample(const SampleArgs& args) override {
    Enqueue([&args](Backend& cpu) { cpu.Sample(args); });
    Synchronize();
  }

 private:
  // Views in `args` are of device memory, or outlive the epoch.
  template <typename Args>
  void Queue(void (Backend::*operation)(const Args&), const Args& args) {
    Enqueue([operation, args](Backend& cpu) { (cpu.*operation)(args); });
  }

  void Enqueue(std::function<void(Backend&)> work) {
    queue_->Enqueue(
        {.run = [work = std::move(work), cpu = &queue_->cpu()] { work(*cpu); }, .done = nullptr});
  }

  // Behind whatever of it is still queued.
  void Drop(std::vector<RecordingQueue::Work> recording) {
    queue_->Enqueue({.run =
                         [recording = std::move(recording)] {
                           for (const RecordingQueue::Work& work : recording) {
                             if (work.done != nullptr) work.done();
                           }
                         },
                     .done = nullptr});
  }

  const std::shared_ptr<RecordingQueue> queue_;
  std::set<uint64_t> was_run_;
  std::map<uint64_t, std::vector<RecordingQueue::Work>> kept_;
  std::vector<std::pair<void*, size_t>> retired_;
};

class RecordedStream final : public DeviceStream {
 public:
  explicit RecordedStream(std::shared_ptr<RecordingQueue> queue) : queue_(std::move(queue)) {}

  void* handle() override { return queue_->handle(); }

  bool is_compute_stream() const override { return true; }

  std::string device_id() const override { return ""; }

  void* Allocate(size_t bytes) override { return queue_->stream().Allocate(bytes); }

  void Free(void* data, size_t bytes) override { queue_->stream().Free(data, bytes); }

  void* AllocateHost(size_t bytes) override { return queue_->stream().AllocateHost(bytes); }

  void FreeHost(void* data, size_t bytes) override { queue_->stream().FreeHost(data, bytes); }

  void Write(void* device, const void* host, size_t bytes) override {
    CHECK(!queue_->is_recording());
    queue_->stream().Write(device, host, bytes);
  }

  void Read(void* host, const void* device, size_t bytes) override {
    CHECK(!queue_->is_recording());
    queue_->stream().Read(host, device, bytes);
  }

  void Copy(void* to, const void* from, size_t bytes) override {
    queue_->Enqueue({.run = [=] { std::memcpy(to, from, bytes); }, .done = nullptr});
  }

  void Gather(
      void* to, const void* from, const int32_t* index, int64_t rows, int64_t row_bytes) override {
    CHECK(!queue_->is_recording());
    queue_->stream().Gather(to, from, index, rows, row_bytes);
  }

  absl::StatusOr<bool> Wait(absl::Duration at_most) override {
    CHECK(!queue_->is_recording());
    const absl::StatusOr<bool> is_done = queue_->stream().Wait(at_most);
    if (is_done.ok() && *is_done) ++queue_->counts.waits;
    return is_done;
  }

 private:
  const std::shared_ptr<RecordingQueue> queue_;
};

}  // namespace

RecordingDevice::RecordingDevice(std::unique_ptr<Backend> cpu)
    : queue_(std::make_shared<RecordingQueue>(std::move(cpu))) {}

RecordingDevice::~RecordingDevice() = default;

std::unique_ptr<Backend> RecordingDevice::MakeBackend() {
  return std::make_unique<RecordedBackend>(queue_);
}

std::unique_ptr<DeviceStream> RecordingDevice::MakeStream() {
  return std::make_unique<RecordedStream>(queue_);
}

DeviceCounts& RecordingDevice::counts() {
  return queue_->counts;
}

}  // namespace shoal
