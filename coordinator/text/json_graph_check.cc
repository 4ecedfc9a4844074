#include "coordinator/text/json_graph_check.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "base/status_macros.h"
#include "coordinator/text/json_schema.h"

namespace shoal {
namespace {

using Index = JsonNode::Index;
using Kind = JsonNode::Kind;
using NameOf = std::function<std::string(Index)>;

// Replaces unions inside unions by their alternatives. Depth first and without recursion: a chain
// of references may be as long as the schema.
class Flattener {
 public:
  Flattener(const NameOf& name, JsonGraph* graph)
      : name_(name), nodes_(graph->nodes), progress_(graph->nodes.size(), Progress::kNew) {}

  absl::Status Run() {
    for (Index node = 0; node < nodes_.size(); ++node) RETURN_IF_ERROR(Flatten(node));
    return absl::OkStatus();
  }

 private:
  enum class Progress : uint8_t { kNew, kOpen, kDone };

  absl::Status Flatten(Index first) {
    std::vector<Index> open = {first};
    while (!open.empty()) {
      const Index node = open.back();
      if (nodes_[node].kind != Kind::kUnion || progress_[node] == Progress::kDone) {
        progress_[node] = Progress::kDone;
        open.pop_back();
        continue;
      }
      const bool is_second_visit =
          std::exchange(progress_[node], Progress::kOpen) == Progress::kOpen;
      if (is_second_visit) {
        RETURN_IF_ERROR(Merge(node));
        open.pop_back();
        continue;
      }
      for (const Index child : nodes_[node].alternatives) {
        if (nodes_[child].kind != Kind::kUnion) continue;
        if (progress_[child] == Progress::kOpen) {
          return absl::InvalidArgumentError(
              absl::StrCat("the schema at ",
                           name_(child),
                           " refers to itself without progress: a value of it would be a value of "
                           "it, and so on"));
        }
        if (progress_[child] == Progress::kNew) open.push_back(child);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Merge(Index node) {
    std::vector<Index> flat;
    for (const Index child : nodes_[node].alternatives) {
      if (nodes_[child].kind == Kind::kUnion) {
        const std::vector<Index>& more = nodes_[child].alternatives;
        flat.insert(flat.end(), more.begin(), more.end());
      } else {
        flat.push_back(child);
      }
    }
    std::vector<Index> distinct;
    for (const Index child : flat) {
      if (std::find(distinct.begin(), distinct.end(), child) == distinct.end()) {
        distinct.push_back(child);
      }
      if (distinct.size() > kMaxSchemaAlternatives) {
        return absl::InvalidArgumentError(absl::StrCat("the schema at ",
                                                       name_(node),
                                                       " has more than ",
                                                       kMaxSchemaAlternatives,
                                                       " alternatives"));
      }
    }
    nodes_[node].alternatives = std::move(distinct);
    progress_[node] = Progress::kDone;
    return absl::OkStatus();
  }

  const NameOf& name_;
  std::vector<JsonNode>& nodes_;
  std::vector<Progress> progress_;
};

int32_t Above(int32_t height) {
  return height >= kMaxJsonDepth ? JsonNode::kImpossible : height + 1;
}

// The height that follows from those of the parts.
int32_t HeightOf(const JsonNode& node, const std::vector<JsonNode>& nodes) {
  int32_t tallest = 0;
  switch (node.kind) {
    case Kind::kUnion: {
      int32_t least = JsonNode::kImpossible;
      for (const Index child : node.alternatives) least = std::min(least, nodes[child].height);
      return least;
    }
    case Kind::kObject:
      for (const JsonNode::Property& property : node.properties) {
        if (property.is_required) tallest = std::max(tallest, nodes[property.node].height);
      }
      return Above(tallest);
    case Kind::kArray:
      if (node.min_size > node.max_size) return JsonNode::kImpossible;
      for (size_t i = 0; i < node.min_size; ++i) {
        const bool is_first = i < node.prefix.size();
        tallest = std::max(tallest, nodes[is_first ? node.prefix[i] : node.items].height);
        if (!is_first) break;
      }
      return Above(tallest);
    case Kind::kString:
      return node.min_size > node.max_size ? JsonNode::kImpossible : 1;
    case Kind::kNumber:
    case Kind::kLiterals:
      return 1;
  }
  return JsonNode::kImpossible;
}

// Arrays end where an item cannot be.
void CutArrays(JsonGraph* graph) {
  for (JsonNode& node : graph->nodes) {
    if (node.kind != Kind::kArray) continue;
    const auto is_impossible = [&](Index item) {
      return item == JsonNode::kNone || graph->nodes[item].height == JsonNode::kImpossible;
    };
    const auto cut = std::find_if(node.prefix.begin(), node.prefix.end(), is_impossible);
    const auto num_possible = static_cast<uint32_t>(cut - node.prefix.begin());
    if (cut != node.prefix.end() || is_impossible(node.items)) {
      node.max_size = std::min(node.max_size, num_possible);
    }
  }
}

}  // namespace

absl::Status FinishJsonGraph(const NameOf& name, JsonGraph* graph) {
  RETURN_IF_ERROR(Flattener(name, graph).Run());
  // After k rounds every height up to k is right.
  bool has_changed = true;
  for (int32_t round = 0; has_changed && round <= 2 * kMaxJsonDepth; ++round) {
    has_changed = false;
    for (JsonNode& node : graph->nodes) {
      const int32_t height = HeightOf(node, graph->nodes);
      has_changed = has_changed || height != node.height;
      node.height = height;
    }
  }
  CutArrays(graph);
  if (graph->nodes[graph->root].height > kMaxJsonDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("no document satisfies the schema: at ",
                     name(graph->root),
                     " something is required that is impossible, contains itself for ever, or "
                     "nests more than ",
                     kMaxJsonDepth,
                     " deep"));
  }
  return absl::OkStatus();
}

}  // namespace shoal
