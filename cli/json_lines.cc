#include "cli/json_lines.h"

#include <iostream>
#include <iterator>

#include "cli/options.h"
#include "nlohmann/json.hpp"

namespace shoal {

int RunJsonLines(
    const std::function<absl::StatusOr<std::string>(const std::string& line)>& convert) {
  int code = kExitOk;
  for (std::string line; std::getline(std::cin, line);) {
    absl::StatusOr<std::string> result = convert(line);
    if (!result.ok()) {
      code = kExitFailed;
      const absl::string_view message = result.status().message();
      result = nlohmann::json{{"error", std::string(message.data(), message.size())}}.dump(
          -1, ' ', false, nlohmann::json::error_handler_t::replace);
    }
    std::cout << *result << std::endl;
  }
  return code;
}

std::string ReadStandardInput() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

}  // namespace shoal
