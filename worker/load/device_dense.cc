#include "worker/load/device_dense.h"

#include <cstddef>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// `pointer`, which points into the memory at `from`, moved to the copy at `to`.
template <typename T>
void Move(T** pointer, const std::byte* from, std::byte* to) {
  if (*pointer == nullptr) return;
  const auto* bytes = reinterpret_cast<const std::byte*>(*pointer);
  *pointer = reinterpret_cast<T*>(to + (bytes - from));
}

DenseWeights Moved(DenseWeights weights, const std::byte* from, std::byte* to) {
  const auto move = [&](auto* pointer) { Move(pointer, from, to); };
  const auto move_tensor = [&](TensorView* tensor) {
    auto* data = static_cast<std::byte*>(tensor->data);
    Move(&data, from, to);
    tensor->data = data;
  };
  for (DenseLayer& layer : weights.layers) {
    for (const float** vector : {&layer.attention_norm,
                                 &layer.qkv_bias,
                                 &layer.sinks,
                                 &layer.out_bias,
                                 &layer.mlp_norm,
                                 &layer.router_bias}) {
      move(vector);
    }
    for (TensorView* matrix : {&layer.qkv, &layer.out, &layer.router}) move_tensor(matrix);
  }
  move(&weights.final_norm);
  move_tensor(&weights.embedding);
  move_tensor(&weights.unembedding);
  return weights;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceDense>> DeviceDense::Copy(const DenseSegment& segment,
                                                               Backend* backend) {
  const auto bytes = static_cast<size_t>(segment.bytes());
  auto* const memory = static_cast<std::byte*>(backend->Allocate(bytes));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory on ", std::string(backend->name()), " for ", bytes, " bytes of dense weights"));
  }
  std::unique_ptr<DeviceDense> dense(new DeviceDense(
      memory, segment.bytes(), Moved(segment.weights(), segment.data(), memory), backend));
  try {
    backend->Write(memory, segment.data(), bytes);
    backend->Synchronize();
  } catch (const DeviceFault& fault) {
    return absl::UnavailableError(absl::StrCat("copying the dense weights: ", fault.what()));
  }
  return dense;
}

DeviceDense::~DeviceDense() {
  backend_->Free(memory_, static_cast<size_t>(bytes_));
}

}  // namespace shoal
