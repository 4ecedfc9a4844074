// The buffers of one step, in order of use: sized once for an epoch, by the rows that a rank may
// have and the ranks that may send it theirs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

#include "base/check.h"
#include "kernels/backend.h"
#include "kernels/tensor.h"
#include "model/config.h"

namespace shoal {

// Device memory of T values that grows to the longest list it was given.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(Backend* backend) : backend_(backend) {}

  ~DeviceArray() { Free(); }

  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  // Replaces what was there. What it returns is valid until the next Set.
  const T* Set(std::span<const T> values) {
    if (values.size() > capacity_) {
      backend_->ForgetReplays();  // They would go on reading what was there.
      Reserve(std::max(values.size(), 2 * capacity_));
    }
    if (!values.empty()) backend_->Write(data_, values.data(), values.size_bytes());
    return data_;
  }

  // Room for so many values, once, when no step is kept. What was there is lost.
  void Reserve(size_t count) {
    if (count <= capacity_) return;
    Free();
    capacity_ = count;
    data_ = static_cast<T*>(backend_->Allocate(capacity_ * sizeof(T)));
    CHECK(data_ != nullptr);
  }

  const T* data() const { return data_; }

 private:
  void Free() {
    if (data_ != nullptr) backend_->Free(data_, capacity_ * sizeof(T));
  }

  Backend* const backend_;
  T* data_ = nullptr;
  size_t capacity_ = 0;  // In values
};

// An index list of a step in device memory.
class DeviceIndexes {
 public:
  explicit DeviceIndexes(Backend* backend) : array_(backend) {}

  IndexView Set(std::span<const int32_t> values) {
    return {.data = array_.Set(values), .size = static_cast<int64_t>(values.size())};
  }

  void Reserve(int64_t count) { array_.Reserve(static_cast<size_t>(count)); }

 private:
  DeviceArray<int32_t> array_;
};

// Room for vocabulary logits: a step with more rows computes them in slices.
inline constexpr int64_t kLogitBytes = int64_t{64} << 20;

struct ActivationSizes {
  int32_t max_rows = 0;         // Of this rank in a step
  int32_t num_ranks = 1;        // Each may send max_rows
  int32_t slot_rows = 0;        // Of the largest slots (exchange.h), if the exchange has any
  int32_t sequence_blocks = 0;  // Of the longest sequence; with slots

  friend bool operator==(const ActivationSizes&, const ActivationSizes&) = default;
};

// Memory of one backend: one piece, cut into the tensors below. All have the rows of the largest
// step; forward.cc takes slices. One thread.
class Activations {
 public:
  // kResourceExhausted, naming the bytes: there is not enough memory.
  static absl::StatusOr<std::unique_ptr<Activations>> Create(const ModelConfig& config,
                                                             const ActivationSizes& sizes,
                                                             Backend* backend);
  ~Activations();

  Activations(const Activations&) = delete;
  Activations& operator=(const Activations&) = delete;

  static int64_t Bytes(const ModelConfig& config, const ActivationSizes& sizes);

  const ActivationSizes& sizes() const { return sizes_; }

  TensorView hidden;      // [max_rows, hidden] f32, the residual stream
  TensorView normed;      // [max_rows, hidden] bf16
  TensorView qkv;         // [max_rows, (num_heads + 2 num_kv_heads) * head_dim] bf16
  TensorView attended;    // [max_rows, num_heads * head_dim] bf16
  TensorView projected;   // [max_rows, hidden] bf16
  TensorView scores;      // [max_rows, num_experts] f32
  TensorView expert_ids;  // [max_rows, k] i32
  TensorView shares;      // [max_rows, k] f32
  TensorView outgoing;    // [max_rows * min(k, num_ranks), hidden] bf16: once per serving rank
  TensorView expert_out;  // [max_rows * k * num_ranks, hidden] bf16: should all choose this rank
  TensorView returned;    // [max_rows * k, hidden] bf16
  // Where the host plans no route: a cell of one, and steps in slots (kernels/route_math.h).
  TensorView expert_offsets;  // [1, num_experts + 1] i32
  TensorView pair_row;        // [1, pairs] i32: max_rows * k, or those of all slots
  TensorView pair_out;        // [1, pairs] i32
  TensorView slots_out;       // [num_ranks * message_rows, hidden] bf16
  TensorView slots_in;        // [num_ranks * message_rows, hidden] bf16
  TensorView slots_home;      // [num_ranks * slot_rows * k, hidden] bf16, results
  TensorView home;            // [1, slot_rows * k] i32, rows of slots_home
  TensorView picked;          // [max_rows, hidden] f32, rows whose logits are wanted
  TensorView logits;          // [slice, vocab] f32; as many rows as kLogitBytes hold, at least one

  // With slots all of them have the room of the largest step from the start: an array that moves
  // makes its rank forget the steps that it keeps, and ranks keep and repeat them together.
  DeviceIndexes token_ids, positions, full_slots, window_slots, full_tables, window_tables;
  DeviceIndexes num_rows;
  DeviceIndexes rows, pair_rows, pair_outs, arrival_offsets, local_index, replicas;
  DeviceArray<AttentionEntry> entries;

 private:
  struct Piece {
    TensorView Activations::*tensor;
    DType dtype;
    int64_t rows;
    int64_t cols;
  };

  struct Reservation {
    DeviceIndexes Activations::*indexes;
    int64_t count;
  };

  static std::vector<Piece> Layout(const ModelConfig& config, const ActivationSizes& sizes);
  static int64_t LayoutBytes(const ModelConfig& config, const ActivationSizes& sizes);
  static std::vector<Reservation> Reservations(const ModelConfig& config,
                                               const ActivationSizes& sizes);

  Activations(const ModelConfig& config,
              const ActivationSizes& sizes,
              void* memory,
              Backend* backend);

  const ActivationSizes sizes_;
  Backend* const backend_;
  void* const memory_;
  const int64_t bytes_;
};

}  // namespace shoal
