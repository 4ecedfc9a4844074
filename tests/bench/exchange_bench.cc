// One Dispatch and one Combine of gpt-oss-120b's rows (hidden 2880, top 4 of 128 experts) between
// processes of this host, with no expert in between.
//
// A row goes to every rank that holds one of its experts and comes home once per expert. With one
// copy of each expert on R ranks, rank r keeps what it can: of T rows a rank sends
// T (R - 1) (1 - (1 - 1/R)^4) rows and gets 4 T (R - 1) / R back, 5760 bytes each. `bytes` counts
// what this rank really sent and received. The floor is memory: shm writes each of these bytes once
// and reads it once or twice.
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "benchmark/benchmark.h"

#include "base/check.h"
#include "base/prng.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/factory.h"

namespace shoal {
namespace {

constexpr int32_t kHidden = 2880;
constexpr int32_t kNumExperts = 128;
constexpr int32_t kTop = 4;

// One rank's part: buffers of the size a worker has, a fresh random route.
class BenchRank {
 public:
  BenchRank(int32_t self, int32_t num_ranks, int32_t rows) : self_(self) {
    std::vector<std::vector<Rank>> replicas;
    for (int32_t e = 0; e < kNumExperts; ++e) {
      replicas.push_back({Rank{e % num_ranks}});
      local_index_.push_back(e % num_ranks == self ? e / num_ranks : -1);
    }
    Prng prng(static_cast<uint64_t>(self));
    std::vector<int32_t> ids;
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t slot = 0; slot < kTop; ++slot) {  // Slots take experts of their own quarter.
        ids.push_back(slot * 32 + static_cast<int32_t>(prng.Below(32)));
      }
    }
    PlanRoute(ids,
              rows,
              kTop,
              {.ranks_of_expert = replicas, .self = Rank{self}, .num_ranks = num_ranks},
              &route_);
    outgoing_.resize(route_.send_rows.size() * kHidden);
    returned_.resize(ids.size() * kHidden);
  }

  const std::vector<int32_t>& local_index() const { return local_index_; }

  absl::Status Run(Exchange* exchange) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    absl::StatusOr<Arrivals> arrivals = exchange->Dispatch(route_, View(&outgoing_), deadline);
    if (!arrivals.ok()) return arrivals.status();
    expert_out_.resize(static_cast<size_t>(arrivals->num_pairs()) * kHidden);
    num_arrived_ = arrivals->rows.rows;
    return exchange->Combine(route_, *arrivals, View(&expert_out_), View(&returned_), deadline);
  }

  // Sent and received, without what stays here.
  int64_t bytes() const {
    const auto self = static_cast<size_t>(self_);
    const int64_t own_rows = route_.rank_rows[self + 1] - route_.rank_rows[self];
    const int64_t own_pairs = route_.rank_pairs[self + 1] - route_.rank_pairs[self];
    const auto rows = [](const std::vector<uint16_t>& v) {
      return static_cast<int64_t>(v.size()) / kHidden;
    };
    return (rows(outgoing_) + num_arrived_ - 2 * own_rows + rows(expert_out_) + rows(returned_) -
            2 * own_pairs) *
           kHidden * 2;
  }

 private:
  static TensorView View(std::vector<uint16_t>* rows) {
    return MakeTensor(
        rows->data(), DType::kBf16, static_cast<int64_t>(rows->size()) / kHidden, kHidden);
  }

  const int32_t self_;
  std::vector<int32_t> local_index_;
  Route route_;
  std::vector<uint16_t> outgoing_;
  std::vector<uint16_t> expert_out_;
  std::vector<uint16_t> returned_;
  int64_t num_arrived_ = 0;
};

std::unique_ptr<Exchange> CreateFor(ExchangeFactory* factory,
                                    const std::vector<std::string>& endpoints,
                                    int32_t self,
                                    int32_t rows,
                                    const BenchRank& rank) {
  Membership membership{
      .cell = CellId{1}, .epoch = Epoch{1}, .self = Rank{self}, .local_index = rank.local_index()};
  for (size_t r = 0; r < endpoints.size(); ++r) {
    membership.members.push_back(
        {.incarnation = Incarnation{r + 1}, .exchange_endpoint = endpoints[r]});
  }
  auto exchange =
      factory->Create(membership,
                      {.max_rows = rows, .experts_per_token = kTop, .row_bytes = kHidden * 2},
                      absl::Now() + absl::Seconds(20));
  CHECK(exchange.ok());
  return *std::move(exchange);
}

void BM_DispatchCombine(benchmark::State& state, const char* kind) {
  const auto rows = static_cast<int32_t>(state.range(0));
  const auto num_ranks = static_cast<int32_t>(state.range(1));
  std::vector<std::unique_ptr<ExchangeFactory>> factories;
  std::vector<std::string> endpoints;
  for (int32_t i = 0; i < num_ranks; ++i) {
    factories.push_back(*MakeExchangeFactory(kind, {}));
    endpoints.push_back(factories.back()->endpoint());
  }
  std::vector<pid_t> peers;
  for (int32_t i = 1; i < num_ranks; ++i) {
    peers.push_back(fork());
    if (peers.back() != 0) continue;
    BenchRank rank(i, num_ranks, rows);
    const auto exchange =
        CreateFor(factories[static_cast<size_t>(i)].get(), endpoints, i, rows, rank);
    while (rank.Run(exchange.get()).ok()) continue;
    _exit(0);
  }

  BenchRank rank(0, num_ranks, rows);
  auto exchange = CreateFor(factories[0].get(), endpoints, 0, rows, rank);
  for (auto _ : state) CHECK(rank.Run(exchange.get()).ok());
  state.SetBytesProcessed(state.iterations() * rank.bytes());
  state.counters["round"] =
      benchmark::Counter(2 * static_cast<double>(state.iterations()),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  exchange = nullptr;  // The peers' sign to leave.
  for (const pid_t peer : peers) waitpid(peer, nullptr, 0);
}

BENCHMARK_CAPTURE(BM_DispatchCombine, shm, "shm:")
    ->ArgNames({"rows", "ranks"})
    ->ArgsProduct({{1, 16, 256}, {2, 4, 8}})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_DispatchCombine, unix, "unix:")
    ->ArgNames({"rows", "ranks"})
    ->ArgsProduct({{1, 16, 256}, {2, 4, 8}})
    ->UseRealTime();
BENCHMARK_CAPTURE(BM_DispatchCombine, tcp, "tcp:127.0.0.1:0")
    ->ArgNames({"rows", "ranks"})
    ->ArgsProduct({{1, 16, 256}, {2, 4, 8}})
    ->UseRealTime();

}  // namespace
}  // namespace shoal

BENCHMARK_MAIN();
