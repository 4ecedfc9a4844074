#include "coordinator/api/history.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace shoal {

void History::AddInstructions(std::string text) {
  if (text.empty()) return;
  std::string& instructions = conversation_.instructions;
  if (is_leading_) {
    absl::StrAppend(&instructions, instructions.empty() ? "" : "\n\n", text);
  } else {
    conversation_.history.push_back(DeveloperMessage(std::move(text)));
  }
}

void History::Add(HarmonyMessage message) {
  EndInstructions();
  conversation_.history.push_back(std::move(message));
}

void History::AddCall(std::string id, const std::string& function, std::string arguments) {
  calls_[std::move(id)] = {conversation_.history.size(), function};
  Add(CallMessage(function, std::move(arguments)));
}

History::Result History::AddResult(const std::string& id, std::string output) {
  const auto call = calls_.find(id);
  if (call == calls_.end()) return Result::kWithoutCall;
  const auto& [index, function] = call->second;
  const bool is_first = results_.emplace(index, ResultMessage(function, std::move(output))).second;
  return is_first ? Result::kAdded : Result::kSecond;
}

void History::Finish() {
  std::vector<HarmonyMessage> ordered;
  for (size_t i = 0; i < conversation_.history.size(); ++i) {
    ordered.push_back(std::move(conversation_.history[i]));
    const auto result = results_.find(i);
    if (result != results_.end()) ordered.push_back(std::move(result->second));
  }
  conversation_.history = std::move(ordered);
}

}  // namespace shoal
