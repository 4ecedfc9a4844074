// Mistakes that the core makes on request, so that tests/sim can show that it would find them.
// Nothing but tests/sim asks.
#pragma once

#include <cstdint>

namespace shoal {

enum class PlantedBug : uint8_t {
  kNone,
  kFreeInFlight,  // Blocks are given back while rows that write them are in flight
  kSlideAhead,    // Window blocks are given back when planned past, not when computed past
  kPublishAhead,  // A prefix is known when its rows are planned, not when they have returned
  kKeepTables,    // A new epoch's plans do not send the block tables again
  kKeepMask,      // The mask of one token serves for the next one too
};

}  // namespace shoal
