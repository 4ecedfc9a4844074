#include "worker/serve/worker_process.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <ctime>
#include <fstream>
#include <random>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

#include "base/serve/log.h"
#include "base/status_macros.h"
#include "worker/exchange/factory.h"
#include "worker/load/device_dense.h"
#include "worker/serve/backends.h"
#include "worker/serve/coordinator_link.h"
#include "worker/worker.h"

namespace shoal {
namespace {

// How long a link may wait for the step thread to take its messages.
constexpr absl::Duration kDeliverPatience = absl::Seconds(10);
constexpr absl::Duration kWatchInterval = absl::Milliseconds(100);
// Left to the rest of the host where nobody said how much memory there is.
constexpr double kUsableShare = 0.9;

// Waits at most so long; true: the worker should end.
using ShouldStop = std::function<bool(absl::Duration)>;

Incarnation NewIncarnation() {
  std::random_device device;
  const uint64_t value = uint64_t{device()} << 32 | device();
  return Incarnation{std::max<uint64_t>(value, 1)};
}

std::string HostName() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

int64_t AvailableMemory() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string word; meminfo >> word;) {
    int64_t kib = 0;
    if (word == "MemAvailable:" && meminfo >> kib) return kib * 1024;
  }
  return 0;
}

// In GB/s, for a log line.
std::string Rate(int64_t bytes, absl::Duration took) {
  return absl::StrFormat("%.2f", static_cast<double>(bytes) / absl::ToDoubleSeconds(took) / 1e9);
}

// One line for every tenth of the bytes. Returning false cancels the load.
LoadProgress LogProgress(uint32_t worker, const ShouldStop& should_stop) {
  const absl::Time begin = absl::Now();
  return [worker, &should_stop, begin, tenths = int64_t{-1}](int64_t done, int64_t total) mutable {
    const int64_t now = total == 0 ? 10 : done * 10 / total;
    if (now != tenths) {
      tenths = now;
      Log(LogLevel::kInfo,
          "load.dense",
          {{"worker", worker},
           {"done_bytes", done},
           {"total_bytes", total},
           {"gb_per_s", Rate(done, absl::Now() - begin)}});
    }
    return !should_stop(absl::ZeroDuration());
  };
}

// A worker and its links.
class Body {
 public:
  explicit Body(const WorkerProcessOptions& options) : options_(options) {}

  ~Body();

  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;

  absl::Status Start(const ShouldStop& should_stop);

  // The reason of a dismissal, once there was one.
  absl::Status dismissal() const {
    absl::MutexLock lock(&mutex_);
    return dismissal_;
  }

  // Why the device failed; then this process can only end, and another one start.
  absl::Status fault() const { return worker_->fault(); }

  // Logs what changed since the last call.
  void Watch();

 private:
  absl::Status OpenModel();
  absl::Status OpenBackends();
  absl::Status GetDense(const ShouldStop& should_stop);
  absl::Status MakeWorker();
  void DialCoordinators();
  bool Deliver(size_t link, ToWorker message);
  void Send(FromWorker message);

  const WorkerProcessOptions& options_;
  // In the order in which each needs the ones before.
  std::unique_ptr<WeightSource> source_;
  std::unique_ptr<DenseSegment> own_dense_;
  const DenseSegment* dense_ = nullptr;
  Backends backends_;
  std::unique_ptr<DeviceDense> device_dense_;  // Instead of dense_, on a GPU
  std::unique_ptr<ExchangeFactory> exchanges_;

  mutable absl::Mutex mutex_;
  absl::Status dismissal_ ABSL_GUARDED_BY(mutex_);
  Term highest_term_ ABSL_GUARDED_BY(mutex_);
  size_t leader_ ABSL_GUARDED_BY(mutex_) = 0;  // The link that spoke under the highest term

  Epoch logged_epoch_;
  std::string logged_phase_;
  int64_t logged_tenths_ = 0;

  struct {
    absl::Time time;
    int64_t done_bytes = 0;
  } load_begin_;  // When the load was last seen in its first tenth: rates count from here

  // The links deliver to the worker, the worker sends through the links. Nothing is delivered
  // before all links are there (both need mutex_); at the end the links go first, each kept by a
  // Send() in progress, then the worker, which is the last member.
  std::vector<std::shared_ptr<CoordinatorLink>> links_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Worker> worker_;
};

absl::Status Body::Start(const ShouldStop& should_stop) {
  RETURN_IF_ERROR(OpenModel());
  RETURN_IF_ERROR(OpenBackends());  // What cannot compute need not load.
  RETURN_IF_ERROR(GetDense(should_stop));
  RETURN_IF_ERROR(MakeWorker());
  DialCoordinators();
  return absl::OkStatus();
}

absl::Status Body::OpenModel() {
  if (options_.coordinators.empty()) return absl::InvalidArgumentError("no coordinator to dial");
  if (options_.dummy.has_value()) {
    RETURN_IF_ERROR(options_.dummy->Validate());
    source_ = MakeSyntheticSource(*options_.dummy);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(source_, OpenCheckpoint(options_.model, options_.bf16_experts));
  return absl::OkStatus();
}

absl::Status Body::OpenBackends() {
  ASSIGN_OR_RETURN(backends_,
                   MakeBackends({.backend = options_.backend,
                                 .threads = options_.threads,
                                 .cpus = options_.cpus,
                                 .isa = options_.isa}));
  return absl::OkStatus();
}

// Other processes of the host may share the dense weights; a device has a memory of its own.
absl::Status Body::GetDense(const ShouldStop& should_stop) {
  const LoadProgress progress = LogProgress(options_.id, should_stop);
  if (backends_.gpu != nullptr) {
    RETURN_IF_ERROR(
        UsableGpuBytes(backends_.free_bytes, DenseSegmentBytes(source_->config())).status());
    ASSIGN_OR_RETURN(device_dense_,
                     DeviceDense::Load(*source_, progress, backends_.stepping.get()));
    return absl::OkStatus();
  }
  if (options_.dense != nullptr) {
    dense_ = options_.dense;
    return absl::OkStatus();
  }
  if (options_.dense_fd >= 0) {
    ASSIGN_OR_RETURN(own_dense_, DenseSegment::Map(options_.dense_fd, source_->config()));
  } else {
    ASSIGN_OR_RETURN(own_dense_, DenseSegment::Load(*source_, progress));
  }
  dense_ = own_dense_.get();
  return absl::OkStatus();
}

absl::Status Body::MakeWorker() {
  ASSIGN_OR_RETURN(
      exchanges_,
      MakeExchangeFactory(options_.exchange, {.hub = options_.hub, .gpu = backends_.gpu}));

  const bool dense_is_shared = options_.dense != nullptr || options_.dense_fd >= 0;
  const int64_t dense_bytes = device_dense_ != nullptr ? device_dense_->bytes()
                              : dense_is_shared        ? 0
                                                       : dense_->bytes();
  int64_t available = static_cast<int64_t>(kUsableShare * static_cast<double>(AvailableMemory()));
  if (backends_.gpu != nullptr) {
    ASSIGN_OR_RETURN(available, UsableGpuBytes(backends_.free_bytes, dense_bytes));
  }
  worker_ = std::make_unique<Worker>(
      WorkerOptions{.id = WorkerId{options_.id},
                    .incarnation = NewIncarnation(),
                    .version = options_.version,
                    .host = options_.host.empty() ? HostName() : options_.host,
                    .process = absl::StrCat("pid ", getpid()),
                    .highest_term = {},
                    .memory_bytes = options_.memory_bytes > 0 ? options_.memory_bytes : available,
                    .dense_bytes = dense_bytes,
                    .exchanges_rows = backends_.gpu == nullptr || exchanges_->takes_device_memory(),
                    .kv_tokens = options_.kv_tokens},
      WorkerParts{
          .source = source_.get(),
          .dense = device_dense_ != nullptr ? &device_dense_->weights() : &dense_->weights(),
          .backend = backends_.stepping.get(),
          .experts = ExpertSet::Create(source_.get(), backends_.loading.get()),
          .exchanges = exchanges_.get(),
          .send = [this](FromWorker message) { Send(std::move(message)); },
          .now = absl::Now});
  Log(LogLevel::kInfo,
      "worker.started",
      {{"worker", options_.id},
       {"backend", std::string(backends_.stepping->name())},
       {"threads", options_.threads},
       {"exchange", exchanges_->endpoint()}});
  return absl::OkStatus();
}

void Body::DialCoordinators() {
  absl::MutexLock lock(&mutex_);
  for (size_t i = 0; i < options_.coordinators.size(); ++i) {
    links_.push_back(std::make_shared<CoordinatorLink>(CoordinatorLinkOptions{
        .address = options_.coordinators[i],
        .jitter_seed = worker_->enrol().incarnation.value + i,
        .enrol = [this] { return worker_->enrol(); },
        .beat = [this] { return worker_->beat(); },
        .deliver = [this, i](ToWorker message) { return Deliver(i, std::move(message)); },
        .dismissed =
            [this](const absl::Status& reason) {
              absl::MutexLock dismissal_lock(&mutex_);
              dismissal_ = reason.ok() ? absl::FailedPreconditionError("dismissed") : reason;
            }}));
  }
}

bool Body::Deliver(size_t link, ToWorker message) {
  const Term term = std::visit([](const auto& m) { return m.term; }, message);
  {
    absl::MutexLock lock(&mutex_);
    if (term >= highest_term_) {
      highest_term_ = term;
      leader_ = link;
    }
  }
  return worker_->Deliver(std::move(message), absl::Now() + kDeliverPatience);
}

void Body::Send(FromWorker message) {
  if (const auto* loaded = std::get_if<ExpertsLoaded>(&message); loaded != nullptr) {
    Log(LogLevel::kInfo,
        "worker.memory",
        {{"worker", options_.id},
         {"kv_tokens", int64_t{loaded->num_full_blocks} * kBlockTokens},
         {"window_blocks", loaded->num_window_blocks},
         {"kv_bytes",
          loaded->num_full_blocks * FullBlockBytes(source_->config()) +
              loaded->num_window_blocks * WindowBlockBytes(source_->config())}});
  }
  std::shared_ptr<CoordinatorLink> link;
  {
    absl::MutexLock lock(&mutex_);
    if (leader_ < links_.size()) link = links_[leader_];
  }
  if (link != nullptr) link->Send(std::move(message));
}

Body::~Body() {
  std::vector<std::shared_ptr<CoordinatorLink>> links;
  {
    absl::MutexLock lock(&mutex_);
    links.swap(links_);
  }
}

void Body::Watch() {
  const Beat beat = worker_->beat();
  const int64_t tenths =
      beat.load_total_bytes == 0 ? 0 : beat.load_done_bytes * 10 / beat.load_total_bytes;
  if (tenths == 0) load_begin_ = {.time = absl::Now(), .done_bytes = beat.load_done_bytes};
  if (tenths != logged_tenths_) {
    logged_tenths_ = tenths;
    Log(LogLevel::kInfo,
        "load.experts",
        {{"worker", options_.id},
         {"done_bytes", beat.load_done_bytes},
         {"total_bytes", beat.load_total_bytes},
         {"gb_per_s",
          Rate(beat.load_done_bytes - load_begin_.done_bytes, absl::Now() - load_begin_.time)}});
  }
  if (const ExchangeTimings timings = exchanges_->timings(); timings.epoch != logged_epoch_) {
    logged_epoch_ = timings.epoch;
    Log(LogLevel::kInfo,
        "exchange.built",
        {{"worker", options_.id},
         {"epoch", timings.epoch.value},
         {"leave_us", absl::ToInt64Microseconds(timings.leave)},
         {"find_us", absl::ToInt64Microseconds(timings.find)},
         {"connect_us", absl::ToInt64Microseconds(timings.connect)},
         {"talk_us", absl::ToInt64Microseconds(timings.talk)}});
  }
  const std::string phase = beat.phase == "stepping" ? "ready" : beat.phase;
  if (phase == logged_phase_) return;
  logged_phase_ = phase;
  Log(LogLevel::kInfo,
      "worker.phase",
      {{"worker", options_.id}, {"phase", phase}, {"resident_bytes", beat.resident_bytes}});
}

absl::Status Live(const WorkerProcessOptions& options, const ShouldStop& should_stop) {
  Body body(options);
  const absl::Status started = body.Start(should_stop);
  if (absl::IsCancelled(started)) return absl::OkStatus();  // Told to stop while it loaded.
  RETURN_IF_ERROR(started);
  while (!should_stop(kWatchInterval)) {
    if (const absl::Status dismissal = body.dismissal(); !dismissal.ok()) {
      Log(LogLevel::kError,
          "worker.dismissed",
          {{"worker", options.id}, {"why", dismissal.message()}});
      // The one that has this id may be this worker's former self, whose end the coordinator has
      // yet to see: starting again helps then. With any other reason it would be dismissed again.
      if (absl::IsAlreadyExists(dismissal)) return absl::UnavailableError(dismissal.message());
      return absl::FailedPreconditionError(dismissal.message());
    }
    body.Watch();
    if (const absl::Status fault = body.fault(); !fault.ok()) {
      Log(LogLevel::kError,
          "worker.device_failed",
          {{"worker", options.id}, {"why", fault.message()}});
      return fault;
    }
  }
  Log(LogLevel::kInfo, "worker.stopped", {{"worker", options.id}});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunWorker(const WorkerProcessOptions& options) {
  InitLog("worker", options.is_quiet ? LogLevel::kError : LogLevel::kInfo);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const pid_t parent = getppid();
  // From the loading, the main and the watching loop alike: all on this thread.
  bool is_stopped = false;
  return Live(options, [&](absl::Duration timeout) {
    if (is_stopped) return true;
    const timespec wait = absl::ToTimespec(timeout);
    is_stopped = sigtimedwait(&signals, nullptr, &wait) > 0 ||
                 (options.exit_with_parent && getppid() != parent);
    return is_stopped;
  });
}

std::unique_ptr<WorkerProcess> WorkerProcess::StartInThread(WorkerProcessOptions options) {
  return std::unique_ptr<WorkerProcess>(new WorkerProcess(std::move(options)));
}

WorkerProcess::WorkerProcess(WorkerProcessOptions options)
    : options_(std::move(options)), thread_([this] {
        const absl::Status status = Live(options_, [this](absl::Duration timeout) {
          absl::MutexLock lock(&mutex_);
          mutex_.AwaitWithTimeout(absl::Condition(&is_stopping_), timeout);
          return is_stopping_;
        });
        absl::MutexLock lock(&mutex_);
        health_ = status;
        has_ended_ = true;
      }) {}

WorkerProcess::~WorkerProcess() {
  Stop();
}

void WorkerProcess::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    is_stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

absl::Status WorkerProcess::Health() const {
  absl::MutexLock lock(&mutex_);
  return health_;
}

bool WorkerProcess::AwaitEnd(absl::Time deadline) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithDeadline(absl::Condition(&has_ended_), deadline);
}

}  // namespace shoal
