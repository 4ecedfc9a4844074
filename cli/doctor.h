// `shoal doctor`: what this host's exchange will run on, why, and what is wrong with it.
#pragma once

namespace shoal {

// Exit code 0: nothing is wrong; 1: something is, and the last lines say what.
int RunDoctor(int argc, char** argv);

}  // namespace shoal
