// Runs a subcommand in this process, with the standard streams replaced.
#pragma once

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace shoal {

struct CommandResult {
  int code = 0;
  std::string output, errors;
};

inline CommandResult RunCommand(int (*command)(int, char**),
                                std::vector<std::string> arguments,
                                const std::string& input) {
  arguments.insert(arguments.begin(), "subcommand");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  std::istringstream in(input);
  std::ostringstream out;
  std::streambuf* const old_in = std::cin.rdbuf(in.rdbuf());
  std::streambuf* const old_out = std::cout.rdbuf(out.rdbuf());
  testing::internal::CaptureStderr();
  std::cin.clear();
  CommandResult result;
  result.code = command(static_cast<int>(argv.size()), argv.data());
  std::cin.rdbuf(old_in);
  std::cout.rdbuf(old_out);
  result.output = out.str();
  result.errors = testing::internal::GetCapturedStderr();
  return result;
}

}  // namespace shoal
