// `shoal tokenize` and `shoal detokenize`: text to token ids and back, with a checkpoint's
// tokenizer.json.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "coordinator/text/tokenizer.h"

namespace shoal {

// The tokenizer of a checkpoint's folder. kNotFound: no such file. kFailedPrecondition: it is not
// one that we understand; the message says why. See RequireHarmonySpecials for chat.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_folder);

// argv[0] is the subcommand's name. Return the exit code (cli/options.h): kExitFailed if a line of
// --jsonl was refused.
int RunTokenize(int argc, char** argv);
int RunDetokenize(int argc, char** argv);

}  // namespace shoal
