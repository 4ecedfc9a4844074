#include "worker/activations.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

constexpr int64_t kAlignment = 64;

constexpr int64_t PieceBytes(DType dtype, int64_t rows, int64_t cols) {
  return (rows * cols * DTypeBytes(dtype) + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

std::vector<Activations::Piece> Activations::Layout(const ModelConfig& config,
                                                    const ActivationSizes& sizes) {
  const int64_t rows = sizes.max_rows;
  const int64_t ranks = sizes.num_ranks;
  const int64_t k = config.experts_per_token;
  const int64_t vocab = config.vocab;
  const int64_t slice =
      std::clamp<int64_t>(kLogitBytes / (4 * vocab), 1, std::max<int64_t>(1, rows));
  const SlotShape slots{.num_ranks = sizes.num_ranks,
                        .slot_rows = std::min(sizes.slot_rows, sizes.max_rows),
                        .k = config.experts_per_token,
                        .row_bytes = config.hidden * DTypeBytes(DType::kBf16)};
  const int64_t slot_messages = slots.slot_rows == 0 ? 0 : ranks * slots.message_rows();
  const int64_t pairs = std::max<int64_t>(rows * k, slots.num_places());
  using A = Activations;
  return {{&A::hidden, DType::kF32, rows, config.hidden},
          {&A::normed, DType::kBf16, rows, config.hidden},
          {&A::qkv, DType::kBf16, rows, config.qkv_rows()},
          {&A::attended, DType::kBf16, rows, config.q_cols()},
          {&A::projected, DType::kBf16, rows, config.hidden},
          {&A::scores, DType::kF32, rows, config.num_experts},
          {&A::expert_ids, DType::kI32, rows, k},
          {&A::shares, DType::kF32, rows, k},
          {&A::outgoing, DType::kBf16, rows * std::min(k, ranks), config.hidden},
          {&A::expert_out, DType::kBf16, rows * k * ranks, config.hidden},
          {&A::returned, DType::kBf16, rows * k, config.hidden},
          {&A::expert_offsets, DType::kI32, 1, config.num_experts + 1},
          {&A::pair_row, DType::kI32, 1, pairs},
          {&A::pair_out, DType::kI32, 1, pairs},
          {&A::slots_out, DType::kBf16, slot_messages, config.hidden},
          {&A::slots_in, DType::kBf16, slot_messages, config.hidden},
          {&A::slots_home, DType::kBf16, slots.num_places(), config.hidden},
          {&A::home, DType::kI32, 1, slots.num_pairs()},
          {&A::picked, DType::kF32, rows, config.hidden},
          {&A::logits, DType::kF32, slice, vocab}};
}

// The host's route may name all rows of all ranks.
std::vector<Activations::Reservation> Activations::Reservations(const ModelConfig& config,
                                                                const ActivationSizes& sizes) {
  if (sizes.slot_rows == 0) return {};
  const int64_t rows = sizes.max_rows;
  const int64_t table = rows * sizes.sequence_blocks;
  const int64_t pairs = rows * config.experts_per_token * sizes.num_ranks;
  using A = Activations;
  return {{&A::token_ids, rows},
          {&A::positions, rows},
          {&A::full_slots, rows},
          {&A::window_slots, rows},
          {&A::full_tables, table},
          {&A::window_tables, table},
          {&A::num_rows, 1},
          {&A::rows, pairs},
          {&A::pair_rows, pairs},
          {&A::pair_outs, pairs},
          {&A::arrival_offsets, config.num_experts + 1},
          {&A::local_index, config.num_experts},
          {&A::replicas, int64_t{config.num_experts} * sizes.num_ranks}};
}

int64_t Activations::Bytes(const ModelConfig& config, const ActivationSizes& sizes) {
  int64_t bytes = LayoutBytes(config, sizes);
  for (const Reservation& reservation : Reservations(config, sizes)) {
    bytes += reservation.count * static_cast<int64_t>(sizeof(int32_t));
  }
  return bytes;
}

int64_t Activations::LayoutBytes(const ModelConfig& config, const ActivationSizes& sizes) {
  int64_t bytes = 0;
  for (const Piece& piece : Layout(config, sizes)) {
    bytes += PieceBytes(piece.dtype, piece.rows, piece.cols);
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Activations>> Activations::Create(const ModelConfig& config,
                                                                 const ActivationSizes& sizes,
                                                                 Backend* backend) {
  const int64_t bytes = LayoutBytes(config, sizes);
  void* memory = backend->Allocate(static_cast<size_t>(bytes));
  if (memory == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ",
                                                     bytes,
                                                     " bytes of activations: ",
                                                     sizes.max_rows,
                                                     " rows, ",
                                                     sizes.num_ranks,
                                                     " ranks"));
  }
  return std::unique_ptr<Activations>(new Activations(config, sizes, memory, backend));
}

Activations::Activations(const ModelConfig& config,
                         const ActivationSizes& sizes,
                         void* memory,
                         Backend* backend)
    : token_ids(backend),
      positions(backend),
      full_slots(backend),
      window_slots(backend),
      full_tables(backend),
      window_tables(backend),
      num_rows(backend),
      rows(backend),
      pair_rows(backend),
      pair_outs(backend),
      arrival_offsets(backend),
      local_index(backend),
      replicas(backend),
      entries(backend),
      sizes_(sizes),
      backend_(backend),
      memory_(memory),
      bytes_(LayoutBytes(config, sizes)) {
  std::byte* at = static_cast<std::byte*>(memory);
  for (const Piece& piece : Layout(config, sizes)) {
    this->*piece.tensor = MakeTensor(at, piece.dtype, piece.rows, piece.cols);
    at += PieceBytes(piece.dtype, piece.rows, piece.cols);
  }
  for (const Reservation& reservation : Reservations(config, sizes)) {
    (this->*reservation.indexes).Reserve(reservation.count);
  }
  if (sizes.slot_rows > 0) entries.Reserve(static_cast<size_t>(sizes.max_rows));
}

Activations::~Activations() {
  backend_->Free(memory_, static_cast<size_t>(bytes_));
}

}  // namespace shoal
