#include "coordinator/text/grammar.h"

#include <algorithm>

namespace shoal {

using Kind = JsonNode::Kind;

GrammarStacks::Top GrammarStacks::Push(const GrammarFrame& frame, Top below) {
  const int32_t depth = below == kEmpty ? 1 : cells_[static_cast<size_t>(below)].depth + 1;
  cells_.push_back({.frame = frame, .below = below, .depth = depth});
  return static_cast<Top>(cells_.size() - 1);
}

GrammarStacks::Top GrammarStacks::Replace(Top top, const GrammarFrame& frame) {
  return Push(frame, below(top));
}

void GrammarStacks::AddTo(Top top, Tops* next) {
  if (next->size() < kMaxTops && std::find(next->begin(), next->end(), top) == next->end()) {
    next->push_back(top);
  }
}

void GrammarStacks::MoveTo(Phase phase, Top top, Tops* next) {
  GrammarFrame moved = frame(top);
  moved.phase = phase;
  AddTo(Replace(top, moved), next);
}

GrammarStacks::Top GrammarStacks::Begin() {
  return Push({.node = graph_->root}, kEmpty);
}

// A value of `child` can be completed above `top` within the depth that is left.
bool GrammarStacks::Fits(Top top, JsonNode::Index child) const {
  const int32_t depth = top == kEmpty ? 0 : cells_[static_cast<size_t>(top)].depth;
  const int32_t height = graph_->nodes[child].height;
  return height <= kMaxJsonDepth - depth;
}

void GrammarStacks::Step(Top top, uint8_t byte, Tops* next) {
  if (top == kEmpty) return;
  switch (frame(top).phase) {
    case Phase::kBegin:
      return BeginValue(top, byte, next);
    case Phase::kInString:
      return StepString(top, byte, next);
    case Phase::kInNumber:
      return StepNumberFrame(top, byte, next);
    case Phase::kInLiteral:
      return StepLiteral(top, byte, next);
    case Phase::kKey:
      return StepKey(top, byte, next);
    case Phase::kOtherKey:
      return StepOtherKey(top, byte, next);
    case Phase::kFirstItem:
    case Phase::kAfterItem:
    case Phase::kSpaceItem:
    case Phase::kNextItem:
      return StepArray(top, byte, next);
    default:
      return StepObject(top, byte, next);
  }
}

// ---- Values

void GrammarStacks::BeginValue(Top top, uint8_t byte, Tops* next) {
  GrammarFrame begun = frame(top);
  const JsonNode& node = graph_->nodes[begun.node];
  switch (node.kind) {
    case Kind::kUnion:
      for (const JsonNode::Index alternative : node.alternatives) {
        if (!Fits(below(top), alternative)) continue;
        begun.node = alternative;
        BeginValue(Replace(top, begun), byte, next);
      }
      return;
    case Kind::kObject:
      if (byte == '{') MoveTo(Phase::kFirstKey, top, next);
      return;
    case Kind::kArray:
      if (byte == '[') MoveTo(Phase::kFirstItem, top, next);
      return;
    case Kind::kString:
      if (byte == '"') MoveTo(Phase::kInString, top, next);
      return;
    case Kind::kNumber:
      return StepNumberFrame(top, byte, next);
    case Kind::kLiterals:
      return StepLiteral(top, byte, next);
  }
}

void GrammarStacks::StepString(Top top, uint8_t byte, Tops* next) {
  GrammarFrame moved = frame(top);
  const JsonNode& node = graph_->nodes[moved.node];
  const StringState state = shoal::StepString(moved.string, byte);
  if (state == StringState::kRefused) return;
  if (state == StringState::kClosed) {
    if (moved.count >= node.min_size) AddTo(below(top), next);
    return;
  }
  if (BeginsCharacter(moved.string, byte)) {
    if (moved.count >= node.max_size) return;
    // What is beyond both limits makes no difference, and should make no difference between states.
    const bool counts = node.max_size != JsonNode::kUnlimited || moved.count < node.min_size;
    if (counts) ++moved.count;
  }
  moved.string = state;
  AddTo(Replace(top, moved), next);
}

// A number ends with the byte that does not belong to it.
void GrammarStacks::StepNumberFrame(Top top, uint8_t byte, Tops* next) {
  GrammarFrame moved = frame(top);
  const NumberRule& rule = graph_->nodes[moved.node].number;
  moved.phase = Phase::kInNumber;
  if (StepNumber(rule, byte, &moved.number)) {
    AddTo(Replace(top, moved), next);
  } else if (IsWholeNumber(rule, moved.number)) {
    Step(below(top), byte, next);
  }
}

void GrammarStacks::StepLiteral(Top top, uint8_t byte, Tops* next) {
  GrammarFrame moved = frame(top);
  const ByteTrie& literals = graph_->nodes[moved.node].literals;
  const ByteTrie::Node place = literals.Step(moved.place, byte);
  if (place == ByteTrie::kNowhere) {
    if (literals.value(moved.place) >= 0) Step(below(top), byte, next);
    return;
  }
  if (literals.is_leaf(place)) return AddTo(below(top), next);
  moved.phase = Phase::kInLiteral;
  moved.place = place;
  AddTo(Replace(top, moved), next);
}

// The frame of `top` has moved to where its next part has ended; the part begins with `byte`.
void GrammarStacks::BeginChild(Top top, JsonNode::Index child, uint8_t byte, Tops* next) {
  BeginValue(Push({.node = child}, top), byte, next);
}

// ---- Objects

// The last property that may come next: the first required one, or the last of all.
uint32_t GrammarStacks::LastKey(Top top) const {
  const std::vector<JsonNode::Property>& properties = node(top).properties;
  uint32_t key = frame(top).count;
  while (key < properties.size() && !properties[key].is_required) ++key;
  return key;
}

// A name that begins with `place` may come next.
bool GrammarStacks::HasKey(Top top, ByteTrie::Node place) const {
  const JsonNode& object = node(top);
  const std::span<const int32_t> keys = object.names.values(place);
  const auto first =
      std::lower_bound(keys.begin(), keys.end(), static_cast<int32_t>(frame(top).count));
  const auto last = static_cast<int32_t>(LastKey(top));
  for (auto key = first; key != keys.end() && *key <= last; ++key) {
    if (Fits(top, object.properties[static_cast<size_t>(*key)].node)) return true;
  }
  return false;
}

bool GrammarStacks::CanClose(Top top) const {
  return LastKey(top) == node(top).properties.size();
}

bool GrammarStacks::HasOtherKeys(Top top) const {
  const JsonNode::Index others = node(top).others;
  return others != JsonNode::kNone && CanClose(top) && Fits(top, others);
}

void GrammarStacks::OpenKey(Top top, Tops* next) {
  GrammarFrame key = frame(top);
  key.place = ByteTrie::kRoot;
  if (HasKey(top, ByteTrie::kRoot)) {
    key.phase = Phase::kKey;
    AddTo(Replace(top, key), next);
  }
  if (HasOtherKeys(top)) {
    key.phase = Phase::kOtherKey;
    key.string = StringState::kPlain;
    AddTo(Replace(top, key), next);
  }
}

void GrammarStacks::StepKey(Top top, uint8_t byte, Tops* next) {
  GrammarFrame moved = frame(top);
  const ByteTrie& names = node(top).names;
  moved.place = names.Step(moved.place, byte);
  if (moved.place == ByteTrie::kNowhere || !HasKey(top, moved.place)) return;
  if (names.is_leaf(moved.place)) {  // After the closing quote
    moved.count = static_cast<uint32_t>(names.value(moved.place));
    moved.phase = Phase::kColon;
  }
  AddTo(Replace(top, moved), next);
}

// The closing quote would make it a name that the schema has, written out of its order.
bool GrammarStacks::IsOtherNameTaken(Top top) const {
  const ByteTrie::Node place = frame(top).place;
  return place != ByteTrie::kNowhere && node(top).names.Step(place, '"') != ByteTrie::kNowhere;
}

void GrammarStacks::CloseOtherKey(Top top, Tops* next) {
  GrammarFrame closed = frame(top);
  closed.string = StringState::kPlain;
  closed.count = static_cast<uint32_t>(node(top).properties.size());
  closed.phase = Phase::kColon;
  AddTo(Replace(top, closed), next);
}

// Names that the schema does not have are written without escapes, so that none of them is one
// that it has, spelled otherwise.
void GrammarStacks::StepOtherKey(Top top, uint8_t byte, Tops* next) {
  GrammarFrame moved = frame(top);
  moved.string = shoal::StepString(moved.string, byte);
  if (moved.string == StringState::kRefused || moved.string == StringState::kEscape) return;
  if (moved.string == StringState::kClosed) {
    if (!IsOtherNameTaken(top)) CloseOtherKey(top, next);
    return;
  }
  if (moved.place != ByteTrie::kNowhere) {
    moved.place = node(top).names.Step(moved.place, byte);
  }
  AddTo(Replace(top, moved), next);
}

void GrammarStacks::StepObject(Top top, uint8_t byte, Tops* next) {
  const Phase phase = frame(top).phase;
  switch (phase) {
    case Phase::kFirstKey:
    case Phase::kSpaceKey:
    case Phase::kNextKey:
      if (byte == '"') return OpenKey(top, next);
      if (byte == ' ' && phase == Phase::kSpaceKey) return MoveTo(Phase::kNextKey, top, next);
      if (byte == '}' && phase == Phase::kFirstKey && CanClose(top)) AddTo(below(top), next);
      return;
    case Phase::kColon:
      if (byte == ':') MoveTo(Phase::kSpaceValue, top, next);
      return;
    case Phase::kSpaceValue:
    case Phase::kValue: {
      if (byte == ' ' && phase == Phase::kSpaceValue) return MoveTo(Phase::kValue, top, next);
      GrammarFrame moved = frame(top);
      const JsonNode& object = node(top);
      const bool is_other = moved.count == object.properties.size();
      const JsonNode::Index child = is_other ? object.others : object.properties[moved.count].node;
      if (!is_other) ++moved.count;
      moved.phase = Phase::kAfterValue;
      moved.place = ByteTrie::kRoot;
      return BeginChild(Replace(top, moved), child, byte, next);
    }
    case Phase::kAfterValue:
      if (byte == ',' && (HasKey(top, ByteTrie::kRoot) || HasOtherKeys(top))) {
        MoveTo(Phase::kSpaceKey, top, next);
      }
      if (byte == '}' && CanClose(top)) AddTo(below(top), next);
      return;
    default:
      return;
  }
}

// ---- Arrays

JsonNode::Index GrammarStacks::ItemNode(Top top) const {
  const JsonNode& array = node(top);
  const uint32_t count = frame(top).count;
  return count < array.prefix.size() ? array.prefix[count] : array.items;
}

bool GrammarStacks::CanAddItem(Top top) const {
  return frame(top).count < node(top).max_size && Fits(top, ItemNode(top));
}

void GrammarStacks::StepArray(Top top, uint8_t byte, Tops* next) {
  const JsonNode& array = node(top);
  GrammarFrame moved = frame(top);
  const bool is_before_item = moved.phase != Phase::kAfterItem;
  if (byte == ']' && (moved.phase == Phase::kFirstItem || !is_before_item)) {
    if (moved.count >= array.min_size) AddTo(below(top), next);
    return;
  }
  if (!is_before_item) {
    if (byte == ',' && CanAddItem(top)) MoveTo(Phase::kSpaceItem, top, next);
    return;
  }
  if (byte == ' ' && moved.phase == Phase::kSpaceItem) return MoveTo(Phase::kNextItem, top, next);
  if (!CanAddItem(top)) return;
  const JsonNode::Index item = ItemNode(top);
  const bool counts = array.max_size != JsonNode::kUnlimited || moved.count < array.min_size ||
                      moved.count < array.prefix.size();
  if (counts) ++moved.count;
  moved.phase = Phase::kAfterItem;
  BeginChild(Replace(top, moved), item, byte, next);
}

// ---- Ends

bool GrammarStacks::IsComplete(Top top) const {
  if (top == kEmpty) return true;
  if (below(top) != kEmpty) return false;
  const GrammarFrame& last = frame(top);
  const JsonNode& value = node(top);
  if (last.phase == Phase::kInNumber) return IsWholeNumber(value.number, last.number);
  return last.phase == Phase::kInLiteral && value.literals.value(last.place) >= 0;
}

void GrammarStacks::Keep(Tops* tops) {
  std::vector<Top> renamed(cells_.size(), kEmpty);
  std::vector<bool> is_needed(cells_.size(), false);
  for (Top top : *tops) {
    for (; top != kEmpty && !is_needed[static_cast<size_t>(top)]; top = below(top)) {
      is_needed[static_cast<size_t>(top)] = true;
    }
  }
  // A cell lies above the cells below it, in this sense too.
  size_t size = 0;
  for (size_t i = 0; i < cells_.size(); ++i) {
    if (!is_needed[i]) continue;
    Cell cell = cells_[i];
    if (cell.below != kEmpty) cell.below = renamed[static_cast<size_t>(cell.below)];
    renamed[i] = static_cast<Top>(size);
    cells_[size++] = cell;
  }
  cells_.resize(size);
  for (Top& top : *tops) {
    if (top != kEmpty) top = renamed[static_cast<size_t>(top)];
  }
}

GrammarState::GrammarState(const JsonGraph* graph) : stacks_(graph), tops_({stacks_.Begin()}) {}

bool GrammarState::Advance(absl::string_view bytes) {
  const size_t size = stacks_.size();
  GrammarStacks::Tops tops = tops_;
  for (const char byte : bytes) {
    GrammarStacks::Tops next;
    for (const GrammarStacks::Top top : tops) {
      stacks_.Step(top, static_cast<uint8_t>(byte), &next);
    }
    tops = std::move(next);
    if (!tops.empty()) continue;
    stacks_.CutTo(size);
    return false;
  }
  stacks_.Keep(&tops);
  tops_ = std::move(tops);
  return true;
}

bool GrammarState::IsComplete() const {
  return std::any_of(tops_.begin(), tops_.end(), [this](GrammarStacks::Top top) {
    return stacks_.IsComplete(top);
  });
}

}  // namespace shoal
