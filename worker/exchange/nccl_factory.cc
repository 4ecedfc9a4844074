#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

#include "base/status_macros.h"
#include "worker/exchange/cuda_stream.h"
#include "worker/exchange/host_exchange.h"
#include "worker/exchange/host_stream.h"
#include "worker/exchange/nccl.h"
#include "worker/exchange/nccl_endpoint.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

// The last words of a worker that hangs in a library: no destructor may run, each could wait for
// the thread that does not come back. The driver takes the device memory back.
void EndProcess(const std::string& why) {
  std::fprintf(stderr, "shoal: %s; the worker ends and has to be started again\n", why.c_str());
  std::fflush(stderr);
  _exit(kNcclHungExitCode);
}

absl::Status WasAborted() {
  return absl::AbortedError("the creation of the exchange was aborted");
}

class NcclExchangeFactory final : public ExchangeFactory {
 public:
  explicit NcclExchangeFactory(NcclFactoryOptions options)
      : options_(std::move(options)),
        endpoint_(FormatNcclEndpoint({.version = NcclVersionText(options_.api.version),
                                      .host = options_.host_id,
                                      .device = options_.stream->device_id()})),
        watchdog_([this](const std::string& what) {
          options_.die(absl::StrCat(what, " did not come back in time"));
        }) {}

  std::string endpoint() const override { return endpoint_; }

  int32_t max_slot_rows() const override { return kMaxSlotRows; }

  bool takes_device_memory() const override { return !options_.api.is_on_host; }

  absl::StatusOr<std::unique_ptr<Exchange>> Create(const Membership& membership,
                                                   const ExchangeLimits& limits,
                                                   absl::Time deadline) override;

  void AbortCreate() override {
    absl::MutexLock lock(&mutex_);
    if (!is_creating_) return;
    is_aborted_ = true;
    if (opening_ != nullptr) opening_->Abort(WasAborted());
  }

  void SetPublisher(std::function<void(Bootstrap)> publish) override {
    publish_ = std::move(publish);
  }

  ExchangeTimings timings() const override {
    absl::MutexLock lock(&mutex_);
    return timings_;
  }

  // The newest epoch's is kept: epochs rise, and an older one's Create would be refused anyway.
  void Deliver(const Bootstrap& bootstrap) override {
    absl::MutexLock lock(&mutex_);
    if (bootstrap.epoch >= newest_.epoch) newest_ = bootstrap;
  }

 private:
  absl::StatusOr<NcclUniqueId> UniqueId(const Membership& membership, absl::Time deadline);
  absl::StatusOr<NcclUniqueId> MakeUniqueId(const Membership& membership);
  absl::StatusOr<NcclUniqueId> AwaitUniqueId(const Membership& membership, absl::Time deadline);
  absl::StatusOr<std::unique_ptr<Exchange>> Join(const Membership& membership,
                                                 const ExchangeLimits& limits,
                                                 absl::Time deadline);

  const NcclFactoryOptions options_;
  const std::string endpoint_;
  std::function<void(Bootstrap)> publish_;
  Watchdog watchdog_;
  NcclReaper reaper_;

  mutable absl::Mutex mutex_;
  ExchangeTimings timings_ ABSL_GUARDED_BY(mutex_);
  bool is_creating_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_aborted_ ABSL_GUARDED_BY(mutex_) = false;
  NcclExchange* opening_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Bootstrap newest_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<std::unique_ptr<Exchange>> NcclExchangeFactory::Create(const Membership& membership,
                                                                      const ExchangeLimits& limits,
                                                                      absl::Time deadline) {
  RETURN_IF_ERROR(CheckMembership(membership, limits));
  // A rank alone exchanges nothing.
  if (membership.members.size() == 1) {
    return std::make_unique<HostExchange>(membership, limits, nullptr);
  }
  RETURN_IF_ERROR(CheckNcclPeers(membership.members));
  {
    absl::MutexLock lock(&mutex_);
    is_creating_ = true;
    is_aborted_ = false;
  }
  absl::StatusOr<std::unique_ptr<Exchange>> exchange = Join(membership, limits, deadline);
  absl::MutexLock lock(&mutex_);
  is_creating_ = false;
  return exchange;
}

absl::StatusOr<std::unique_ptr<Exchange>> NcclExchangeFactory::Join(const Membership& membership,
                                                                    const ExchangeLimits& limits,
                                                                    absl::Time deadline) {
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const NcclUniqueId id, UniqueId(membership, deadline));
  const absl::Time found = absl::Now();
  auto exchange = std::make_unique<NcclExchange>(
      membership,
      limits,
      NcclCommParts{.api = &options_.api,
                    .stream = options_.stream.get(),
                    .watchdog = &watchdog_,
                    .reaper = &reaper_,
                    .die = options_.die,
                    .name = absl::StrCat(
                        "epoch ", membership.epoch.value, " of cell ", membership.cell.value),
                    .abort_patience = options_.abort_patience});
  {
    absl::MutexLock lock(&mutex_);
    if (is_aborted_) return WasAborted();
    opening_ = exchange.get();
  }
  const absl::Status status = exchange->Open(id, deadline);
  {
    absl::MutexLock lock(&mutex_);
    opening_ = nullptr;
    if (status.ok()) {
      timings_ = {.epoch = membership.epoch,
                  .leave = reaper_.last_abort(),
                  .find = found - start,
                  .connect = exchange->connected() - found,
                  .talk = absl::Now() - exchange->connected()};
    }
  }
  if (!status.ok()) return status;
  return exchange;
}

absl::StatusOr<NcclUniqueId> NcclExchangeFactory::UniqueId(const Membership& membership,
                                                           absl::Time deadline) {
  if (membership.self.value != 0) return AwaitUniqueId(membership, deadline);
  return MakeUniqueId(membership);
}

// A fresh one for each epoch: it is the address of a listener in this process, which serves one
// meeting of exactly these ranks.
absl::StatusOr<NcclUniqueId> NcclExchangeFactory::MakeUniqueId(const Membership& membership) {
  NcclUniqueId id{};
  {
    const Watchdog::Guard guard(
        &watchdog_, "ncclGetUniqueId", absl::Now() + NcclComm::kCallPatience);
    RETURN_IF_ERROR(NcclStatus(options_.api, options_.api.get_unique_id(&id), "ncclGetUniqueId"));
  }
  if (publish_ == nullptr) return absl::FailedPreconditionError("no way to the other ranks");
  publish_({.cell = membership.cell,
            .epoch = membership.epoch,
            .id = std::string(id.bytes, sizeof(id.bytes))});
  return id;
}

absl::StatusOr<NcclUniqueId> NcclExchangeFactory::AwaitUniqueId(const Membership& membership,
                                                                absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto has_news = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return is_aborted_ || newest_.epoch >= membership.epoch;
  };
  const bool in_time = mutex_.AwaitWithDeadline(absl::Condition(&has_news), deadline);
  if (is_aborted_) return WasAborted();
  const Rank maker{0};
  if (!in_time) {
    return WithSuspects(absl::DeadlineExceededError(
                            absl::StrCat("the NCCL unique id of epoch ",
                                         membership.epoch.value,
                                         " did not come from rank 0 (worker ",
                                         membership.members.front().worker.value,
                                         ") by way of the coordinator before the deadline")),
                        {&maker, 1});
  }
  if (newest_.epoch != membership.epoch || newest_.cell != membership.cell) {
    return absl::FailedPreconditionError(absl::StrCat("a peer is at epoch ",
                                                      newest_.epoch.value,
                                                      ", this rank at epoch ",
                                                      membership.epoch.value));
  }
  NcclUniqueId id{};
  if (newest_.id.size() != sizeof(id.bytes)) {
    return WithSuspects(
        absl::FailedPreconditionError(absl::StrCat(
            "a NCCL unique id of ", newest_.id.size(), " bytes; it has ", sizeof(id.bytes))),
        {&maker, 1});
  }
  std::memcpy(id.bytes, newest_.id.data(), sizeof(id.bytes));
  return id;
}

}  // namespace

std::unique_ptr<ExchangeFactory> MakeNcclExchangeFactory(NcclFactoryOptions options) {
  return std::make_unique<NcclExchangeFactory>(std::move(options));
}

absl::StatusOr<std::unique_ptr<ExchangeFactory>> OpenNcclExchangeFactory(const std::string& library,
                                                                         CudaBackend* gpu) {
  ASSIGN_OR_RETURN(const NcclApi api, LoadNccl(library));
  if (api.is_on_host != (gpu == nullptr)) {
    return absl::FailedPreconditionError(
        absl::StrCat(api.path,
                     api.is_on_host ? " exchanges host memory, and this worker computes on a GPU"
                                    : " exchanges GPU memory, and this worker computes on the CPU; "
                                      "use --exchange shm, unix or tcp"));
  }
  std::unique_ptr<DeviceStream> stream;
  if (gpu == nullptr) {
    stream = MakeHostStream();
  } else {
    ASSIGN_OR_RETURN(stream, MakeCudaStream(gpu));
  }
  return MakeNcclExchangeFactory(
      {.api = api, .stream = std::move(stream), .host_id = NcclHostId(), .die = EndProcess});
}

}  // namespace shoal
