// Ids that a model has logits for and that must not come out of it: the padding behind the
// vocabulary, and markers that training never used.
#pragma once

#include <cstdint>
#include <vector>

#include "coordinator/text/tokenizer.h"
#include "proto/cluster.h"

namespace shoal {

// Of the ids below `vocab`, those without a token. If the tokenizer has the markers of the harmony
// format, all its other markers too, but for the ends in `ends`. Rising ranges.
std::vector<TokenRange> NeverSampled(const Tokenizer& tokenizer,
                                     int32_t vocab,
                                     const std::vector<int>& ends);

}  // namespace shoal
