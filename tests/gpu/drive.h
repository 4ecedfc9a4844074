// Sequences driven through a StepModel in batches and chunks, and the hash of all they gave.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/gpu/device_arrays.h"
#include "tests/gpu/step_model.h"

namespace shoal::gpu {

inline constexpr int32_t kNewTokens = 6;
inline constexpr int32_t kDrivePositions = 320;  // The longest prompt and its tokens fit

struct Sequence {
  std::vector<int32_t> tokens;
  int32_t prompt = 0;
  int32_t computed = 0;
  uint64_t hash = 0xcbf29ce484222325u;

  bool is_done() const {
    return computed >= prompt && static_cast<int32_t>(tokens.size()) == prompt + kNewTokens;
  }
};

inline std::vector<Sequence> Prompts(int num_sequences, int64_t vocab) {
  std::vector<Sequence> sequences(static_cast<size_t>(num_sequences));
  for (int s = 0; s < num_sequences; ++s) {
    // Most are short; a few reach beyond the window, the chunks of attention and the widest tiles.
    const auto seed = static_cast<uint64_t>(s);
    sequences[static_cast<size_t>(s)].prompt =
        s % 20 == 0 ? 300 : 5 + static_cast<int32_t>(RandomBits(seed, 1) % 60);
    for (int32_t i = 0; i < sequences[static_cast<size_t>(s)].prompt; ++i) {
      sequences[static_cast<size_t>(s)].tokens.push_back(
          static_cast<int32_t>(RandomBits(seed, 100 + i) % static_cast<uint64_t>(vocab)));
    }
  }
  return sequences;
}

inline uint64_t Drive(StepModel& model, int num_sequences, int batch, int32_t chunk) {
  std::vector<Sequence> all = Prompts(num_sequences, model.geometry().vocab);
  const auto vocab = static_cast<size_t>(model.geometry().vocab);
  std::vector<float> logits;
  for (int first = 0; first < num_sequences; first += batch) {
    const int last = std::min(num_sequences, first + batch);
    for (;;) {
      std::vector<Part> parts;
      for (int s = first; s < last; ++s) {
        Sequence& sequence = all[static_cast<size_t>(s)];
        if (sequence.is_done()) continue;
        const auto known = static_cast<int32_t>(sequence.tokens.size());
        const int32_t count = std::min(chunk, known - sequence.computed);
        const auto* from = sequence.tokens.data() + sequence.computed;
        parts.push_back({s, sequence.computed, {from, from + count}});
      }
      if (parts.empty()) break;
      const std::vector<int32_t> sampled = model.Step(parts, &logits);
      for (size_t i = 0; i < parts.size(); ++i) {
        Sequence& sequence = all[static_cast<size_t>(parts[i].sequence)];
        sequence.computed += static_cast<int32_t>(parts[i].tokens.size());
        if (sequence.computed < sequence.prompt) continue;
        sequence.hash = Hash(&logits[i * vocab], vocab * sizeof(float), sequence.hash);
        sequence.hash = Hash(&sampled[i], sizeof(int32_t), sequence.hash);
        sequence.tokens.push_back(sampled[i]);
      }
    }
  }
  uint64_t hash = 0xcbf29ce484222325u;
  for (const Sequence& sequence : all) hash = Hash(&sequence.hash, sizeof(uint64_t), hash);
  return hash;
}

}  // namespace shoal::gpu
