// A real Worker, with the real model and loader, between a coordinator that is the test and peers
// that are a script.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

#include "base/bounded_queue.h"
#include "kernels/cpu/backend.h"
#include "tests/support/faulty_backend.h"
#include "worker/worker.h"

namespace shoal {

inline constexpr absl::Duration kPatience = absl::Seconds(30);
inline constexpr CellId kCell{3};
inline constexpr SequenceId kSequence{11};

// What an exchange does when it is used, and what was done to it: all under the mutex.
struct Script {
  absl::Mutex mutex;
  absl::Status create;           // What Create returns, if not OK
  bool create_blocks = false;    // Until AbortCreate
  absl::Status dispatch;         // What Dispatch returns, if not OK
  bool dispatch_blocks = false;  // Until Abort
  int num_blocked = 0;           // In Create or Dispatch
  int num_created = 0;
  int num_alive = 0;
  bool create_aborted = false;
  std::vector<Epoch> epochs;
  std::vector<Bootstrap> bootstraps;       // Delivered
  std::function<void(Bootstrap)> publish;  // As the worker set it
  std::string publishes;                   // Create says this to the other ranks, if not empty

  void AwaitBlocked() {
    absl::MutexLock lock(&mutex);
    const auto blocked = [this] { return num_blocked > 0; };
    ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&blocked), kPatience));
  }
};

// A cell of two ranks of which the other one has no rows and computes nothing: everything this rank
// sends would have to come to itself, so plans in it are empty or fail.
class ScriptedExchange final : public Exchange {
 public:
  explicit ScriptedExchange(Script* script) : script_(*script) {
    absl::MutexLock lock(&script_.mutex);
    ++script_.num_alive;
  }

  ~ScriptedExchange() override {
    absl::MutexLock lock(&script_.mutex);
    --script_.num_alive;
  }

  absl::StatusOr<Arrivals> Dispatch(const Route&,
                                    const TensorView& outgoing,
                                    absl::Time deadline) override {
    absl::MutexLock lock(&script_.mutex);
    if (script_.dispatch_blocks) {
      ++script_.num_blocked;
      const auto aborted = [this] { return !aborted_.ok(); };
      const bool in_time = script_.mutex.AwaitWithDeadline(absl::Condition(&aborted), deadline);
      --script_.num_blocked;
      return in_time ? aborted_ : absl::DeadlineExceededError("nobody came");
    }
    if (!script_.dispatch.ok()) return script_.dispatch;
    Arrivals nothing;
    nothing.rows = outgoing;  // No rows, of the right width
    nothing.rows.rows = 0;
    nothing.source_pairs = {0, 0, 0};
    nothing.expert_offsets.assign(9, 0);
    return nothing;
  }

  absl::Status Combine(
      const Route&, const Arrivals&, const TensorView&, const TensorView&, absl::Time) override {
    return absl::OkStatus();
  }

  void Abort(absl::Status cause) override {
    absl::MutexLock lock(&script_.mutex);
    if (aborted_.ok()) aborted_ = std::move(cause);
  }

  absl::Status Health() const override { return absl::OkStatus(); }

  std::vector<Rank> suspects() const override { return {Rank{1}}; }

  absl::Duration TakeWaitTime() override { return absl::Microseconds(5); }

 private:
  Script& script_;
  absl::Status aborted_;
};

class ScriptedFactory final : public ExchangeFactory {
 public:
  explicit ScriptedFactory(Script* script) : script_(*script) {}

  std::string endpoint() const override { return "scripted:1"; }

  absl::StatusOr<std::unique_ptr<Exchange>> Create(const Membership& membership,
                                                   const ExchangeLimits&,
                                                   absl::Time deadline) override {
    {
      absl::MutexLock lock(&script_.mutex);
      EXPECT_EQ(script_.num_alive, 0) << "the exchange before is still there";
      ++script_.num_created;
      script_.epochs.push_back(membership.epoch);
      if (!script_.publishes.empty()) {
        script_.publish(
            {.cell = membership.cell, .epoch = membership.epoch, .id = script_.publishes});
      }
      if (script_.create_blocks) {
        ++script_.num_blocked;
        const auto aborted = [this] { return script_.create_aborted; };
        const bool in_time = script_.mutex.AwaitWithDeadline(absl::Condition(&aborted), deadline);
        --script_.num_blocked;
        script_.create_aborted = false;
        if (in_time) return absl::AbortedError("creation aborted");
        return absl::DeadlineExceededError("nobody came");
      }
      if (!script_.create.ok()) return script_.create;
    }
    return std::make_unique<ScriptedExchange>(&script_);
  }

  void AbortCreate() override {
    absl::MutexLock lock(&script_.mutex);
    script_.create_aborted = true;
  }

  void SetPublisher(std::function<void(Bootstrap)> publish) override {
    absl::MutexLock lock(&script_.mutex);
    script_.publish = std::move(publish);
  }

  void Deliver(const Bootstrap& bootstrap) override {
    absl::MutexLock lock(&script_.mutex);
    script_.bootstraps.push_back(bootstrap);
  }

 private:
  Script& script_;
};

// A source whose reads of expert tensors wait while the gate is closed.
class GatedSource final : public WeightSource {
 public:
  explicit GatedSource(const ModelConfig& config) : inner_(MakeSyntheticSource(config)) {}

  const ModelConfig& config() const override { return inner_->config(); }

  std::string digest() const override { return inner_->digest(); }

  absl::Status Read(absl::string_view tensor,
                    int64_t offset,
                    std::span<std::byte> out) const override {
    {
      absl::MutexLock lock(&mutex_);
      ++num_waiting_;
      mutex_.Await(absl::Condition(&is_open_));
      --num_waiting_;
    }
    return inner_->Read(tensor, offset, out);
  }

  void Set(bool is_open) {
    absl::MutexLock lock(&mutex_);
    is_open_ = is_open;
  }

  void AwaitReader() {
    absl::MutexLock lock(&mutex_);
    const auto waiting = [this] { return num_waiting_ > 0 && !is_open_; };
    ASSERT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&waiting), kPatience));
  }

 private:
  const std::unique_ptr<WeightSource> inner_;
  mutable absl::Mutex mutex_;
  mutable int num_waiting_ = 0;
  bool is_open_ = true;
};

class WorkerTest : public testing::Test {
 protected:
  WorkerTest() {
    auto dense = DenseSegment::Load(source_, [](int64_t, int64_t) { return true; });
    EXPECT_TRUE(dense.ok());
    dense_ = *std::move(dense);
    MakeWorker({.id = WorkerId{5},
                .incarnation = Incarnation{77},
                .version = "1.2.3",
                .host = "here",
                .process = "pid 1",
                .highest_term = {},
                .memory_bytes = int64_t{1} << 30,
                .dense_bytes = dense_->bytes(),
                .kv_tokens = 1000});
  }

  void MakeWorker(WorkerOptions options) {
    worker_.reset();
    worker_ = std::make_unique<Worker>(
        std::move(options),
        WorkerParts{.source = &source_,
                    .dense = &dense_->weights(),
                    .backend = &device_,
                    .experts = ExpertSet::Create(&source_, &loading_backend_),
                    .exchanges = &factory_,
                    .send =
                        [this](FromWorker message) {
                          sent_.Push(std::move(message), absl::InfiniteFuture());
                        },
                    .now = absl::Now});
  }

  ~WorkerTest() override {
    source_.Set(true);
    worker_.reset();
  }

  void Tell(ToWorker message) {
    ASSERT_TRUE(worker_->Deliver(std::move(message), absl::Now() + kPatience));
  }

  // The next answer, which is a T.
  template <typename T>
  T Hear() {
    std::optional<FromWorker> message = sent_.Pop(absl::Now() + kPatience);
    if (!message.has_value()) {
      ADD_FAILURE() << "no answer";
      return T{};
    }
    if (const auto* refusal = std::get_if<Refusal>(&*message);
        refusal != nullptr && !std::is_same_v<T, Refusal>) {
      ADD_FAILURE() << "refused: " << refusal->reason;
    }
    T* answer = std::get_if<T>(&*message);
    EXPECT_NE(answer, nullptr) << "another kind of answer: " << message->index();
    return answer == nullptr ? T{} : std::move(*answer);
  }

  static std::vector<ExpertId> Experts(int first, int end) {
    std::vector<ExpertId> experts;
    for (int e = first; e < end; ++e) experts.push_back(ExpertId{e});
    return experts;
  }

  void Load(int first, int end, uint64_t version = 1) {
    Tell(LoadExperts{.term = term_,
                     .cell = kCell,
                     .placement_version = version,
                     .experts = Experts(first, end)});
    EXPECT_TRUE(Hear<ExpertsLoaded>().status.ok());
  }

  // Rank 0 holds experts [0, num_own), rank 1 the rest.
  Configure MakeConfigure(uint64_t epoch, int num_ranks, int num_own, uint64_t next_step) const {
    Configure configure{.term = term_,
                        .cell = kCell,
                        .epoch = Epoch{epoch},
                        .next_step = StepId{next_step},
                        .rank = Rank{0},
                        .max_rows = 64,
                        .num_full_blocks = 8,
                        .num_window_blocks = 8,
                        .deadline_ms = 60'000};
    configure.members.resize(static_cast<size_t>(num_ranks));
    for (int e = 0; e < 8; ++e) configure.placement.push_back({Rank{e < num_own ? 0 : 1}});
    return configure;
  }

  // A cell of this rank alone, with all experts.
  void EnterAlone(uint64_t epoch = 1, uint64_t next_step = 1) {
    if (!is_loaded_) Load(0, 8);
    is_loaded_ = true;
    Tell(MakeConfigure(epoch, 1, 8, next_step));
    const Ready ready = Hear<Ready>();
    EXPECT_TRUE(ready.status.ok()) << ready.status;
    EXPECT_EQ(ready.epoch, Epoch{epoch});
  }

  // A cell of two, whose other rank is the script.
  void EnterTogether(uint64_t epoch = 1, uint64_t next_step = 1) {
    Load(0, 8);
    Tell(MakeConfigure(epoch, 2, 8, next_step));
    EXPECT_TRUE(Hear<Ready>().status.ok());
  }

  void Keep(int32_t length = 12) {
    static constexpr int kPrompt[] = {101, 16, 47, 28, 18, 71, 18, 49, 87, 101, 71, 77};
    KeepRecord record{.term = term_, .sequence = kSequence, .prompt_length = length};
    for (int32_t i = 0; i < length; ++i) record.tokens.push_back(TokenId{kPrompt[i]});
    record.sampling.temperature = 0.0f;
    Tell(std::move(record));
  }

  StepPlan Plan(uint64_t epoch, uint64_t step) const {
    return {.term = term_,
            .cell = kCell,
            .epoch = Epoch{epoch},
            .step = StepId{step},
            .deadline_ms = 60'000};
  }

  // Positions [first, first + count) of the sequence, with a sample.
  StepPlan Plan(uint64_t epoch, uint64_t step, int32_t first, int32_t count) const {
    StepPlan plan = Plan(epoch, step);
    plan.entries.push_back({.sequence = kSequence,
                            .first_position = first,
                            .num_positions = count,
                            .first_block = 0,
                            .full_blocks = {BlockId{2}},
                            .window_blocks = {BlockId{3}},
                            .wants_sample = true,
                            .wants_logits = false});
    return plan;
  }

  Term term_{4};
  bool is_loaded_ = false;
  GatedSource source_{ModelConfig::Tiny()};
  std::unique_ptr<DenseSegment> dense_;
  CpuBackend backend_{{.num_threads = 1, .cpus = {}}};
  FaultyBackend device_{&backend_};
  CpuBackend loading_backend_{{.num_threads = 1, .cpus = {}}};
  Script script_;
  ScriptedFactory factory_{&script_};
  BoundedQueue<FromWorker> sent_{64};
  std::unique_ptr<Worker> worker_;
};

}  // namespace shoal
