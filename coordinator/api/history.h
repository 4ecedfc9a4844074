// What a client told of a conversation, in the order in which the prompt has it: the leading
// instructions are the conversation's own, and each result stands behind its call, also where
// several calls came first and their results after them. The same for every API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "coordinator/text/harmony.h"

namespace shoal {

class History {
 public:
  // Writes to `conversation`, which outlives this.
  explicit History(Conversation* conversation) : conversation_(*conversation) {}

  // Leading ones add up; later ones are messages of their own.
  void AddInstructions(std::string text);

  // What follows is no leading instruction, even if nothing was added.
  void EndInstructions() { is_leading_ = false; }

  void Add(HarmonyMessage message);

  // An id that a client uses again names the later call from here on.
  void AddCall(std::string id, const std::string& function, std::string arguments);

  enum class Result : uint8_t { kAdded, kWithoutCall, kSecond };

  // kWithoutCall: no call before it has the id. kSecond: the call has a result.
  Result AddResult(const std::string& id, std::string output);

  // After the last message: puts each result behind its call.
  void Finish();

 private:
  struct Call {
    size_t index;  // Of its message
    std::string function;
  };

  Conversation& conversation_;
  bool is_leading_ = true;                    // Only instructions so far
  std::map<std::string, Call> calls_;         // By the client's id
  std::map<size_t, HarmonyMessage> results_;  // By the index of the call's message
};

}  // namespace shoal
