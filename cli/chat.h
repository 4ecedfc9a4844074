// `shoal chat`: a conversation in the terminal, the model's thinking dimmed before its answer.
#pragma once

namespace shoal {

int RunChat(int argc, char** argv);

}  // namespace shoal
