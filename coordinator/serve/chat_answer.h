// The answer to a chat: what the model wrote, read as harmony, in whatever form its client reads.
#pragma once

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "coordinator/api/answer_items.h"
#include "coordinator/api/chat_writer.h"
#include "coordinator/serve/service_metrics.h"
#include "coordinator/serve/transcript.h"

namespace shoal {

// 24 letters and digits that nobody can guess without the seed: clients use them as keys.
enum class NamePurpose : uint64_t { kAnswer = 100, kItems = 101 };
std::string RandomName(uint64_t seed, NamePurpose purpose);
// What the ids of a choice's calls begin with; a call's number follows.
std::string CallIds(uint64_t seed, int32_t choice);

// Items of all choices -> messages. The order of calls: Begin; Write, any number of times, and End,
// for each choice; then Complete or Fail.
class ChatForm {
 public:
  virtual ~ChatForm() = default;

  struct Beginning {
    int32_t num_choices = 1;
    int32_t prompt_tokens = 0;
    int64_t created_us = 0;
    uint64_t id_seed = 0;
    bool has_logprobs = false;
    bool shows_reasoning = true;
  };

  // Where a choice stands after what is written: for those who would attach there.
  struct Mark {
    int32_t choice = 0;
    int32_t num_tokens = 0;
    uint64_t prefix_hash = 0;
  };

  struct Ending {
    AnswerEnd end = AnswerEnd::kLength;
    bool has_called = false;
    std::optional<std::string> stop;  // The stop string that was found
    std::optional<TokenId> stop_token;
    int32_t reasoning_tokens = 0;
    const Finish* finish = nullptr;
  };

  virtual void Begin(const Beginning& beginning) = 0;
  // `is_shown`: the client has not got them yet.
  virtual void Write(const Mark& mark, std::span<const ItemEvent> events, bool is_shown) = 0;
  virtual void End(const Mark& mark, const Ending& ending) = 0;
  virtual void Complete(const ApiUsage& usage) = 0;
  // After Begin.
  virtual void Fail(const absl::Status& status) = 0;
  // Moves what is ready to the end of *messages.
  virtual void Flush(std::deque<std::string>* messages) = 0;
};

class ChatTranscript final : public TokenTranscript {
 public:
  // `metrics` counts repairs; null: another reader's transcript does.
  ChatTranscript(Args args, std::unique_ptr<ChatForm> form, ServiceMetrics* metrics)
      : TokenTranscript(std::move(args)), form_(std::move(form)), metrics_(metrics) {}

 protected:
  absl::Status OnStarted(const Accepted& action) override;
  bool OnToken(const Place& place, const OutputToken& token, bool is_shown) override;
  bool OnFinished(const Place& place, const Finish& action, bool is_stopped) override;
  void OnEnd(const absl::Status& status) override;
  void Flush(std::deque<std::string>* messages) override;

 private:
  struct Choice {
    explicit Choice(ItemReader item_reader) : reader(std::move(item_reader)) {}

    ItemReader reader;
    // Of the tokens since the last Write; neighbours are one.
    std::vector<ItemEvent> events;
    ChatForm::Mark mark;
    bool is_shown = true;  // These events
  };

  void Add(const Place& place, std::vector<ItemEvent> events, bool is_shown);
  void WriteOut(Choice* choice);

  const std::unique_ptr<ChatForm> form_;
  ServiceMetrics* const metrics_;
  FunctionNames functions_;
  std::vector<Choice> choices_;
  ApiUsage usage_;
};

}  // namespace shoal
