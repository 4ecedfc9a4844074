// The table of messages (docs/step_protocol.md) on the real Worker: real model, real loader, and an
// exchange that the test holds in its hand.
#include "worker/worker.h"

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/cpu/backend.h"
#include "worker/exchange/suspects.h"

namespace shoal {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(30);
constexpr CellId kCell{3};
constexpr SequenceId kSequence{11};

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
                    .backend = &backend_,
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
  CpuBackend loading_backend_{{.num_threads = 1, .cpus = {}}};
  Script script_;
  ScriptedFactory factory_{&script_};
  BoundedQueue<FromWorker> sent_{64};
  std::unique_ptr<Worker> worker_;
};

TEST_F(WorkerTest, EnrolsWithWhatACellMustAgreeOn) {
  const Enrol enrol = worker_->enrol();
  EXPECT_EQ(enrol.worker, WorkerId{5});
  EXPECT_EQ(enrol.incarnation, Incarnation{77});
  EXPECT_EQ(enrol.numerics.version, "1.2.3");
  EXPECT_EQ(enrol.numerics.backend, "cpu");
  EXPECT_EQ(enrol.numerics.checkpoint_digest, source_.digest());
  EXPECT_EQ(enrol.numerics.numerics_version, kNumericsVersion);
  EXPECT_EQ(enrol.exchange_endpoint, "scripted:1");
  EXPECT_EQ(enrol.num_experts, 8);
  EXPECT_EQ(enrol.num_layers, 4);
  EXPECT_EQ(enrol.dense_bytes, dense_->bytes());
  EXPECT_GT(enrol.expert_bytes, 0);
}

TEST_F(WorkerTest, LoadedExpertsComeWithTheBlocksThatFitBesideThem) {
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 9, .experts = Experts(2, 5)});
  const ExpertsLoaded loaded = Hear<ExpertsLoaded>();
  EXPECT_TRUE(loaded.status.ok());
  EXPECT_EQ(loaded.cell, kCell);
  EXPECT_EQ(loaded.placement_version, 9u);
  EXPECT_EQ(loaded.num_full_blocks, 32);  // 1,000 tokens
  EXPECT_EQ(loaded.num_window_blocks, 32);
  EXPECT_GE(worker_->beat().resident_bytes, 3 * worker_->enrol().expert_bytes);
}

// Without kv_tokens the blocks are what the memory leaves; and they stay as many when a rank takes
// over experts of a lost one, since with fewer all K/V would begin anew.
TEST_F(WorkerTest, BlocksStayAsManyWhenExpertsOfALostRankAreAdded) {
  WorkerOptions options{.id = WorkerId{6}, .incarnation = Incarnation{78}};
  options.memory_bytes = int64_t{400} << 20;
  MakeWorker(options);
  const auto load = [this](int end) {
    Tell(LoadExperts{.term = term_, .cell = kCell, .experts = Experts(0, end)});
    return Hear<ExpertsLoaded>();
  };
  const ExpertsLoaded first = load(4);
  const ExpertsLoaded second = load(6);
  EXPECT_TRUE(second.status.ok());
  EXPECT_GT(first.num_full_blocks, first.num_window_blocks);
  EXPECT_EQ(second.num_full_blocks, first.num_full_blocks);
  EXPECT_EQ(second.num_window_blocks, first.num_window_blocks);
  const int64_t kv = first.num_full_blocks * FullBlockBytes(source_.config()) +
                     first.num_window_blocks * WindowBlockBytes(source_.config());
  const int64_t weights = worker_->beat().resident_bytes;
  EXPECT_LT(kv + weights, options.memory_bytes);
  EXPECT_GT(kv, options.memory_bytes / 4);
}

TEST_F(WorkerTest, TooLittleMemoryIsToldInBytes) {
  WorkerOptions options{.id = WorkerId{6}, .incarnation = Incarnation{78}};
  options.memory_bytes = 1'000'000;
  MakeWorker(options);
  Tell(LoadExperts{.term = term_, .cell = kCell, .experts = Experts(0, 8)});
  const ExpertsLoaded loaded = Hear<ExpertsLoaded>();
  EXPECT_EQ(loaded.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(loaded.status.message()), HasSubstr("are missing"));
}

TEST_F(WorkerTest, ImpossibleExpertsAreRefused) {
  for (const std::vector<ExpertId>& experts : {std::vector<ExpertId>{ExpertId{8}},
                                               std::vector<ExpertId>{ExpertId{-1}},
                                               std::vector<ExpertId>{ExpertId{2}, ExpertId{1}},
                                               std::vector<ExpertId>{ExpertId{2}, ExpertId{2}}}) {
    Tell(LoadExperts{.term = term_, .cell = kCell, .experts = experts});
    EXPECT_EQ(Hear<ExpertsLoaded>().status.code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(WorkerTest, APlanIsRunAndItsTokenKept) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  const StepResult result = Hear<StepResult>();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.term, term_);
  EXPECT_EQ(result.cell, kCell);
  EXPECT_EQ(result.epoch, Epoch{1});
  EXPECT_EQ(result.step, StepId{1});
  ASSERT_EQ(result.tokens.size(), 1u);
  EXPECT_EQ(result.tokens[0].sequence, kSequence);
  EXPECT_EQ(result.tokens[0].position, 12);
  EXPECT_EQ(result.tokens[0].token, TokenId{92});  // Spec 8.6
  // The next plan names the token that has just been kept.
  Tell(Plan(1, 2, 12, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, TwoPlansMayLeaveBeforeTheFirstAnswer) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  Tell(Plan(1, 2, 12, 1));
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).position, 12);
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).position, 13);
}

TEST_F(WorkerTest, ARepeatedPlanGetsTheStoredResult) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  const StepResult first = Hear<StepResult>();
  Tell(Plan(1, 1, 0, 12));
  const StepResult again = Hear<StepResult>();
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.compute_us, first.compute_us);  // Not computed again
}

TEST_F(WorkerTest, GapsAndOldStepsAreRefused) {
  EnterAlone();
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kFailedPrecondition);
  Tell(Plan(1, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 2));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 1));
  const Refusal refusal = Hear<Refusal>();
  EXPECT_EQ(refusal.reason.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(refusal.step, StepId{3});
}

TEST_F(WorkerTest, OtherEpochsAreRefused) {
  EnterAlone(5);
  Tell(Plan(4, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
  Tell(Plan(6, 1));
  EXPECT_EQ(Hear<Refusal>().epoch, Epoch{5});
  Tell(MakeConfigure(5, 1, 8, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, ALowerTermIsRefusedWithTheHigherOne) {
  EnterAlone();
  term_ = Term{3};
  const std::vector<ToWorker> messages = {Plan(1, 1),
                                          MakeConfigure(2, 1, 8, 1),
                                          Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}},
                                          LoadExperts{.term = term_, .cell = kCell},
                                          KeepRecord{.term = term_, .sequence = kSequence},
                                          Welcome{.term = term_}};
  for (const ToWorker& message : messages) {
    Tell(message);
    const Refusal refusal = Hear<Refusal>();
    EXPECT_EQ(refusal.reason.code(), absl::StatusCode::kAborted) << message.index();
    EXPECT_EQ(refusal.term, Term{4});
  }
  // None of them ended the epoch.
  term_ = Term{4};
  Tell(Plan(1, 1));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, AHigherTermIsRemembered) {
  Tell(Welcome{.term = Term{9}});
  Tell(Welcome{.term = Term{8}});
  EXPECT_EQ(Hear<Refusal>().term, Term{9});
  EXPECT_EQ(worker_->enrol().highest_term, Term{9});
  EXPECT_EQ(worker_->beat().highest_term, Term{9});
}

TEST_F(WorkerTest, AnEpochNeedsItsExperts) {
  Load(0, 4);
  Tell(MakeConfigure(1, 1, 8, 1));
  const Ready ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ready.status.message()), HasSubstr("expert 4"));
  Tell(Plan(1, 1));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, ImpossibleMembershipsAreRefused) {
  Load(0, 8);
  uint64_t epoch = 1;
  const auto expect_refusal = [&](const auto& change) {
    Configure configure = MakeConfigure(epoch++, 2, 8, 1);
    change(&configure);
    Tell(configure);
    EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kInvalidArgument) << epoch - 1;
  };
  expect_refusal([](Configure* c) { c->rank = Rank{2}; });
  expect_refusal([](Configure* c) { c->rank = Rank{-1}; });
  expect_refusal([](Configure* c) { c->placement.pop_back(); });
  expect_refusal([](Configure* c) { c->placement[3].clear(); });
  expect_refusal([](Configure* c) { c->placement[3] = {Rank{2}}; });
  expect_refusal([](Configure* c) { c->max_rows = 0; });
  expect_refusal([](Configure* c) { c->num_full_blocks = 0; });
  expect_refusal([](Configure* c) { c->num_window_blocks = -1; });
  expect_refusal([](Configure* c) { c->num_full_blocks = kMaxBlocks + 1; });
}

TEST_F(WorkerTest, ABadPlanIsAnErrorAndEndsTheEpoch) {
  EnterAlone();
  Keep(3);
  Tell(Plan(1, 1, 0, 12));
  const StepResult result = Hear<StepResult>();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
  EnterAlone(2, 2);
}

TEST_F(WorkerTest, AnExchangeErrorNamesSuspectsAndEndsTheEpoch) {
  script_.dispatch = absl::UnavailableError("rank 1 is gone");
  EnterTogether();
  Tell(Plan(1, 1));
  const StepResult result = Hear<StepResult>();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(result.suspects, ElementsAre(Rank{1}));
  EXPECT_EQ(result.wait_us, 5);
  {
    absl::MutexLock lock(&script_.mutex);
    EXPECT_EQ(script_.num_alive, 0);  // The peers see our end of it close
  }
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AbortReachesABlockedStep) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  EXPECT_EQ(worker_->beat().phase, "stepping");
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}});
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  // The Abort itself finds the epoch left, and needs no answer.
  Tell(Plan(1, 2));
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AbortOfAnotherEpochOrCellDoesNot) {
  script_.dispatch_blocks = true;
  EnterTogether(7);
  StepPlan plan = Plan(7, 1);
  plan.deadline_ms = 50;
  Tell(plan);
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{6}});
  Tell(Abort{.term = term_, .cell = CellId{1}, .epoch = Epoch{7}});
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(WorkerTest, TheNextEpochReachesABlockedStep) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  Tell(MakeConfigure(2, 1, 8, 2));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Tell(Plan(2, 2));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
}

TEST_F(WorkerTest, AbortReachesTheMakingOfAnExchange) {
  Load(0, 8);
  script_.create_blocks = true;
  Tell(MakeConfigure(1, 2, 8, 1));
  script_.AwaitBlocked();
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{1}});
  EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kAborted);
}

TEST_F(WorkerTest, AnEpochThatEndedBeforeItBeganIsNotBuilt) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  Tell(MakeConfigure(2, 2, 8, 2));  // Wakes the step thread; all three may be waiting by then
  Tell(Abort{.term = term_, .cell = kCell, .epoch = Epoch{2}});
  Tell(MakeConfigure(3, 2, 8, 2));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
  const Ready second = Hear<Ready>();
  EXPECT_EQ(second.epoch, Epoch{2});
  const Ready third = Hear<Ready>();
  EXPECT_EQ(third.epoch, Epoch{3});
  EXPECT_TRUE(third.status.ok());
}

TEST_F(WorkerTest, AFailedCreationNamesItsSuspects) {
  Load(0, 8);
  const std::vector<Rank> suspects = {Rank{1}};
  script_.create = WithSuspects(absl::UnavailableError("rank 1 does not answer"), suspects);
  Tell(MakeConfigure(1, 2, 8, 1));
  const Ready ready = Hear<Ready>();
  EXPECT_EQ(ready.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(ready.suspects, ElementsAre(Rank{1}));
}

TEST_F(WorkerTest, RecordsThatDisagreeAreRefused) {
  EnterAlone();
  Keep();
  Keep();  // The same again is harmless
  KeepRecord other{.term = term_, .sequence = kSequence, .index = 11, .tokens = {TokenId{1}}};
  Tell(other);
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kDataLoss);
  other.index = 20;
  Tell(other);
  EXPECT_EQ(Hear<Refusal>().reason.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTest, ForgottenRecordsAreGone) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  EXPECT_EQ(worker_->beat().kv_full_blocks_used, 1);
  StepPlan plan = Plan(1, 2);
  plan.forget = {kSequence, SequenceId{99}};
  Tell(plan);
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(Plan(1, 3, 12, 1));
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kFailedPrecondition);
}

// A rank whose peers were lost goes on with the K/V it has.
TEST_F(WorkerTest, CachedPositionsSurviveAnEpoch) {
  EnterAlone();
  Keep();
  Tell(Plan(1, 1, 0, 12));
  Hear<StepResult>();
  Tell(Plan(1, 2, 12, 1));
  const TokenId expected = Hear<StepResult>().tokens.at(0).token;
  Configure other = MakeConfigure(2, 1, 8, 3);
  other.max_rows = 128;
  Tell(other);
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Tell(Plan(2, 3, 12, 1));  // Once more: from the accepted length
  const StepResult result = Hear<StepResult>();
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.tokens.at(0).token, expected);
}

TEST_F(WorkerTest, StepsGoOnWhileExpertsAreLoaded) {
  Load(0, 4);
  Tell(MakeConfigure(1, 2, 4, 1));
  EXPECT_TRUE(Hear<Ready>().status.ok());
  source_.Set(false);
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 2, .experts = Experts(0, 8)});
  source_.AwaitReader();
  for (uint64_t step = 1; step <= 3; ++step) {
    Tell(Plan(1, step));
    EXPECT_TRUE(Hear<StepResult>().status.ok());
  }
  source_.Set(true);
  EXPECT_EQ(Hear<ExpertsLoaded>().placement_version, 2u);
  Tell(Plan(1, 4));
  EXPECT_TRUE(Hear<StepResult>().status.ok());
  Tell(MakeConfigure(2, 1, 8, 5));
  EXPECT_TRUE(Hear<Ready>().status.ok());
}

TEST_F(WorkerTest, ExpertsInUseStayUntilAnEpochWithoutThem) {
  EnterAlone();
  Keep();
  Tell(LoadExperts{.term = term_, .cell = kCell, .placement_version = 2, .experts = Experts(0, 2)});
  EXPECT_TRUE(Hear<ExpertsLoaded>().status.ok());
  Tell(Plan(1, 1, 0, 12));
  EXPECT_EQ(Hear<StepResult>().tokens.at(0).token, TokenId{92});
  const int64_t all = worker_->beat().resident_bytes;
  Tell(MakeConfigure(2, 2, 2, 2));
  EXPECT_TRUE(Hear<Ready>().status.ok());
  Load(0, 2, 3);
  EXPECT_LT(worker_->beat().resident_bytes, all);
  Tell(MakeConfigure(3, 1, 8, 2));
  EXPECT_EQ(Hear<Ready>().status.code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(WorkerTest, EndsInTheMiddleOfAStepAndOfALoad) {
  script_.dispatch_blocks = true;
  EnterTogether();
  Tell(Plan(1, 1));
  script_.AwaitBlocked();
  worker_.reset();
  EXPECT_EQ(Hear<StepResult>().status.code(), absl::StatusCode::kAborted);
}

}  // namespace
}  // namespace shoal
