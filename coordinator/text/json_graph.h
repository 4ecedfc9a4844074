// A JSON schema as a graph: what a value at each place may be. Made by json_schema.h, followed byte
// by byte by grammar.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "coordinator/text/byte_trie.h"
#include "coordinator/text/json_number.h"

namespace shoal {

// Values nest at most so deep, whatever a schema would allow: readers have limits too.
inline constexpr int32_t kMaxJsonDepth = 64;

struct JsonNode {
  using Index = uint32_t;

  enum class Kind : uint8_t { kUnion, kObject, kArray, kString, kNumber, kLiterals };

  struct Property {
    Index node = 0;
    bool is_required = false;
  };

  static constexpr Index kNone = 0xffffffff;
  static constexpr uint32_t kUnlimited = 0xffffffff;
  static constexpr int32_t kImpossible = std::numeric_limits<int32_t>::max();

  Kind kind = Kind::kUnion;

  // How many values stand within each other, at least, in one of this kind: 1 for a number.
  // kImpossible: there is none.
  int32_t height = kImpossible;

  std::vector<Index> alternatives;  // kUnion: no unions among them

  // kObject. Properties come in this order, others after them.
  std::vector<Property> properties;
  ByteTrie names;  // As they are written, with the closing quote; value: index of the property
  Index others = kNone;  // What properties of other names may be

  // kArray.
  std::vector<Index> prefix;  // The first items
  Index items = kNone;        // Those after them

  // kArray: items; kString: characters.
  uint32_t min_size = 0;
  uint32_t max_size = kUnlimited;

  NumberRule number;  // kNumber

  ByteTrie literals;  // kLiterals: as they are written
};

struct JsonGraph {
  std::vector<JsonNode> nodes;
  JsonNode::Index root = 0;
};

}  // namespace shoal
