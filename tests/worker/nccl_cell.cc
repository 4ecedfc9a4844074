#include "tests/worker/nccl_cell.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "worker/exchange/host_stream.h"

namespace shoal {

NcclCell::NcclCell(int32_t num_ranks,
                   const std::vector<int>& versions,
                   const std::function<std::unique_ptr<DeviceStream>(int32_t)>& stream) {
  for (int32_t rank = 0; rank < num_ranks; ++rank) {
    NcclApi api = FakeNcclApi();
    if (!versions.empty()) api.version = versions[static_cast<size_t>(rank)];
    factories_.push_back(
        MakeNcclExchangeFactory({.api = api,
                                 .stream = stream == nullptr ? MakeHostStream() : stream(rank),
                                 .host_id = absl::StrCat("host-", rank),
                                 .die =
                                     [this](const std::string& why) {
                                       absl::MutexLock lock(&mutex_);
                                       deaths_.push_back(why);
                                     },
                                 .abort_patience = kAbortPatience}));
    factories_.back()->SetPublisher([this](const Bootstrap& bootstrap) {
      absl::MutexLock lock(&mutex_);
      if (!hands_on_) return;
      for (const auto& factory : factories_) factory->Deliver(bootstrap);
    });
    endpoints_.push_back(factories_.back()->endpoint());
  }
  exchanges_.resize(factories_.size());
}

NcclCell::~NcclCell() {
  exchanges_.clear();
  factories_.clear();
}

absl::Status NcclCell::Create(const CellShape& shape,
                              const Traffic& traffic,
                              int32_t rank,
                              uint64_t epoch,
                              absl::Time deadline) {
  const auto r = static_cast<size_t>(rank);
  exchanges_[r] = nullptr;
  auto exchange = factories_[r]->Create(
      MakeMembership(endpoints_, epoch, rank, traffic.replicas), shape.limits(), deadline);
  if (exchange.ok()) exchanges_[r] = *std::move(exchange);
  return exchange.status();
}

absl::Status NcclCell::CreateAll(const CellShape& shape, const Traffic& traffic, uint64_t epoch) {
  std::vector<absl::Status> statuses(factories_.size());
  OnEachRank(shape.num_ranks, [&](int32_t rank) {
    statuses[static_cast<size_t>(rank)] =
        Create(shape, traffic, rank, epoch, absl::Now() + absl::Seconds(30));
  });
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace shoal
