// `shoal tokenize` and `shoal detokenize`: text to token ids and back, with a checkpoint's
// tokenizer.json.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "coordinator/text/tokenizer.h"

namespace shoal {

// The tokenizer of a checkpoint's folder. kNotFound or kInvalidArgument name the file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_folder);

// argv[0] is the subcommand's name. Return the exit code: 0; 1 if a text or an id was refused; 2
// if there is no tokenizer; CLI11's for a wrong command line.
int RunTokenize(int argc, char** argv);
int RunDetokenize(int argc, char** argv);

}  // namespace shoal
