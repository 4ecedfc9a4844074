#include "worker/exchange/host_stream.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <functional>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace shoal {
namespace {

// Counters only; nothing is ordered by them.
std::atomic<int64_t> num_streams{0};
std::atomic<int64_t> num_buffers{0};

class HostStream final : public DeviceStream {
 public:
  HostStream() : thread_([this] { Run(); }) {
    abi_.enqueue =
        [](ShoalHostStream* self, void (*run)(void*), void (*done)(void*), void* argument) {
          static_cast<Abi*>(self)->stream->Enqueue([run, done, argument] {
            run(argument);
            done(argument);
          });
        };
    abi_.is_recording = [](ShoalHostStream*) { return 0; };
    abi_.stream = this;
    ++num_streams;
  }

  // What is queued is done first.
  ~HostStream() override {
    {
      absl::MutexLock lock(&mutex_);
      is_stopping_ = true;
    }
    thread_.join();
    --num_streams;
  }

  void* handle() override { return static_cast<ShoalHostStream*>(&abi_); }

  bool is_compute_stream() const override { return false; }

  std::string device_id() const override { return ""; }

  void* Allocate(size_t bytes) override {
    void* const data = ::operator new (bytes, std::align_val_t{64}, std::nothrow);
    if (data != nullptr) ++num_buffers;
    return data;
  }

  void Free(void* data, size_t /*bytes*/) override {
    ::operator delete (data, std::align_val_t{64});
    --num_buffers;
  }

  void* AllocateHost(size_t bytes) override { return Allocate(bytes); }

  void FreeHost(void* data, size_t bytes) override { Free(data, bytes); }

  void Write(void* device, const void* host, size_t bytes) override { Copy(device, host, bytes); }

  void Read(void* host, const void* device, size_t bytes) override { Copy(host, device, bytes); }

  void Copy(void* to, const void* from, size_t bytes) override {
    if (bytes == 0) return;
    Enqueue([to, from, bytes] { std::memcpy(to, from, bytes); });
  }

  void Gather(
      void* to, const void* from, const int32_t* index, int64_t rows, int64_t row_bytes) override {
    if (rows == 0) return;
    Enqueue([to,
             from,
             indexes = std::vector<int32_t>(index, index + rows),
             bytes = static_cast<size_t>(row_bytes)] {
      auto* out = static_cast<std::byte*>(to);
      for (size_t i = 0; i < indexes.size(); ++i) {
        const auto row = static_cast<size_t>(indexes[i]);
        std::memcpy(out + i * bytes, static_cast<const std::byte*>(from) + row * bytes, bytes);
      }
    });
  }

  absl::StatusOr<bool> Wait(absl::Duration at_most) override {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(this, &HostStream::IsIdle), at_most);
  }

 private:
  struct Abi : ShoalHostStream {
    HostStream* stream = nullptr;
  };

  void Enqueue(std::function<void()> work) {
    absl::MutexLock lock(&mutex_);
    work_.push_back(std::move(work));
  }

  bool IsIdle() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return work_.empty() && !is_working_; }

  bool HasNews() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return is_stopping_ || !work_.empty(); }

  void Run() {
    absl::MutexLock lock(&mutex_);
    while (true) {
      mutex_.Await(absl::Condition(this, &HostStream::HasNews));
      if (work_.empty()) return;
      const std::function<void()> work = std::move(work_.front());
      work_.pop_front();
      is_working_ = true;
      mutex_.Unlock();
      work();
      mutex_.Lock();
      is_working_ = false;
    }
  }

  Abi abi_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> work_ ABSL_GUARDED_BY(mutex_);
  bool is_working_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: starts when everything above exists
};

}  // namespace

std::unique_ptr<DeviceStream> MakeHostStream() {
  return std::make_unique<HostStream>();
}

HostStreamCounts CountHostStreams() {
  return {.streams = num_streams, .buffers = num_buffers};
}

}  // namespace shoal
