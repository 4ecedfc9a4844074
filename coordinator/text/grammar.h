// Which bytes may come next in a JSON document that follows a schema: a pushdown automaton over the
// schema's graph. What is written is compact JSON in the schema's order, with at most one space
// after each ':' and ','. Every beginning that is accepted can be completed.
//
// Where alternatives are open, each is followed on its own: a state is a set of stacks, one frame
// for each value that is open, the root's at the bottom. The stacks share their lower parts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "coordinator/text/byte_trie.h"
#include "coordinator/text/json_graph.h"
#include "coordinator/text/json_number.h"
#include "coordinator/text/json_string.h"

namespace shoal {

// An open value: its node, and how far it is written.
struct GrammarFrame {
  enum class Phase : uint8_t {
    kBegin,
    kInString,
    kInNumber,
    kInLiteral,
    kFirstKey,    // After '{'
    kKey,         // In the name of a property that the schema names
    kOtherKey,    // In another name
    kColon,       // After a name
    kSpaceValue,  // After ':'
    kValue,       // And a space
    kAfterValue,  // Between a value and ',' or '}'
    kSpaceKey,    // After ','
    kNextKey,     // And a space
    kFirstItem,   // After '['
    kAfterItem,
    kSpaceItem,
    kNextItem,
  };

  JsonNode::Index node = 0;
  Phase phase = Phase::kBegin;
  StringState string = StringState::kPlain;  // kInString, kOtherKey
  // kInString: characters begun. Arrays: items begun, objects: the first property that may come
  // next; while a name and its value are written, the property's own index.
  uint32_t count = 0;
  ByteTrie::Node place = ByteTrie::kRoot;  // kKey, kOtherKey: in the names; kInLiteral
  NumberState number;                      // kInNumber
};

// Stacks of one computation. Steps only add to it, so that going back is cutting off.
class GrammarStacks {
 public:
  using Top = int32_t;
  using Tops = std::vector<Top>;
  static constexpr Top kEmpty = -1;  // The document is complete
  // So many interpretations are followed at once; further ones are not allowed to begin.
  static constexpr size_t kMaxTops = 64;

  // `graph` outlives this.
  explicit GrammarStacks(const JsonGraph* graph) : graph_(graph) {}

  // A stack on which the document has not begun.
  Top Begin();

  // Adds to `next` the stacks that `top` becomes by `byte`; none if it refuses it.
  void Step(Top top, uint8_t byte, Tops* next);

  // The value that `top` is in may end here, and with it the document.
  bool IsComplete(Top top) const;

  const GrammarFrame& frame(Top top) const { return cells_[static_cast<size_t>(top)].frame; }

  Top below(Top top) const { return cells_[static_cast<size_t>(top)].below; }

  const JsonNode& node(Top top) const { return graph_->nodes[frame(top).node]; }

  // The stacks added since size() was `size` are given back.
  size_t size() const { return cells_.size(); }

  void CutTo(size_t size) { cells_.resize(size); }

  // Only what `tops` need stays, and they are renamed.
  void Keep(Tops* tops);

  // As the closing quote of a name that the schema does not have. REQUIRES: `top` is in such a one.
  void CloseOtherKey(Top top, Tops* next);

 private:
  using Phase = GrammarFrame::Phase;

  struct Cell {
    GrammarFrame frame;
    Top below = kEmpty;
    int32_t depth = 1;  // Of the stack
  };

  Top Push(const GrammarFrame& frame, Top below);
  Top Replace(Top top, const GrammarFrame& frame);
  void AddTo(Top top, Tops* next);

  void BeginValue(Top top, uint8_t byte, Tops* next);
  void BeginChild(Top top, JsonNode::Index child, uint8_t byte, Tops* next);
  void StepString(Top top, uint8_t byte, Tops* next);
  void StepNumberFrame(Top top, uint8_t byte, Tops* next);
  void StepLiteral(Top top, uint8_t byte, Tops* next);
  void StepObject(Top top, uint8_t byte, Tops* next);
  void StepKey(Top top, uint8_t byte, Tops* next);
  void StepOtherKey(Top top, uint8_t byte, Tops* next);
  void StepArray(Top top, uint8_t byte, Tops* next);
  void OpenKey(Top top, Tops* next);
  void MoveTo(Phase phase, Top top, Tops* next);

  bool Fits(Top top, JsonNode::Index child) const;
  bool HasKey(Top top, ByteTrie::Node place) const;
  bool HasOtherKeys(Top top) const;
  bool IsOtherNameTaken(Top top) const;
  bool CanClose(Top top) const;
  bool CanAddItem(Top top) const;
  JsonNode::Index ItemNode(Top top) const;
  uint32_t LastKey(Top top) const;

  const JsonGraph* graph_;
  std::vector<Cell> cells_;
};

// A document so far. A value: a function of the graph and of the bytes, and nothing else.
class GrammarState {
 public:
  // `graph` outlives every copy.
  explicit GrammarState(const JsonGraph* graph);

  // False, and no change, if the bytes cannot follow.
  bool Advance(absl::string_view bytes);

  bool IsComplete() const;

  const GrammarStacks& stacks() const { return stacks_; }

  const GrammarStacks::Tops& tops() const { return tops_; }

 private:
  GrammarStacks stacks_;
  GrammarStacks::Tops tops_;
};

}  // namespace shoal
