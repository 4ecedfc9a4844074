// Walks a TokenTrie together with something that reads bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "coordinator/text/grammar.h"
#include "coordinator/text/token_trie.h"

namespace shoal {

// Calls found(value) for every string of the trie whose bytes can follow `top`. What it adds to
// `stacks` it takes away again.
template <typename Found>
void WalkTrie(const TokenTrie& trie,
              GrammarStacks::Top top,
              GrammarStacks* stacks,
              const Found& found) {
  // levels[d]: the stacks after d bytes; cuts[d]: how many stacks there were then.
  std::vector<GrammarStacks::Tops> levels(trie.max_depth() + 1);
  std::vector<size_t> cuts(trie.max_depth() + 1, stacks->size());
  levels[0] = {top};
  const std::vector<TokenTrie::Node>& nodes = trie.nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    stacks->CutTo(cuts[node.depth - 1u]);
    GrammarStacks::Tops& next = levels[node.depth];
    next.clear();
    for (const GrammarStacks::Top t : levels[node.depth - 1u]) stacks->Step(t, node.byte, &next);
    if (next.empty()) {
      i = node.end;
      continue;
    }
    cuts[node.depth] = stacks->size();
    if (node.value != TokenTrie::kNone) found(node.value);
    ++i;
  }
  stacks->CutTo(cuts[0]);
}

}  // namespace shoal
