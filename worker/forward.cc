#include "worker/forward.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>

#include "base/check.h"
#include "base/status_macros.h"
#include "worker/exchange/route.h"

namespace shoal {
namespace {

// [num_experts, max_replicas], -1 behind the last: RouteTable's form of a placement.
std::vector<int32_t> ReplicaTable(std::span<const std::vector<Rank>> placement, size_t width) {
  std::vector<int32_t> table;
  for (const std::vector<Rank>& ranks : placement) {
    for (size_t i = 0; i < width; ++i) table.push_back(i < ranks.size() ? ranks[i].value : -1);
  }
  return table;
}

RouteTable MakeRouteTable(const ForwardParts& parts) {
  size_t width = 0;
  for (const std::vector<Rank>& ranks : parts.placement) width = std::max(width, ranks.size());
  return {.replicas = parts.activations->replicas.Set(ReplicaTable(parts.placement, width)).data,
          .num_experts = static_cast<int32_t>(parts.placement.size()),
          .max_replicas = static_cast<int32_t>(width),
          .self = parts.self.value};
}

}  // namespace

Forward::Forward(const ForwardParts& parts)
    : parts_(parts),
      config_(*parts.config),
      backend_(*parts.backend),
      weights_(*parts.dense),
      all_(*parts.activations),
      slice_rows_(all_.logits.rows),
      local_index_(all_.local_index.Set(parts.local_index)),
      slots_(parts.exchange == nullptr ? nullptr : parts.exchange->slots()),
      table_(slots_ == nullptr ? RouteTable{} : MakeRouteTable(parts)) {
  CHECK(parts.exchange != nullptr || parts.num_ranks == 1);
}

Forward::~Forward() {
  backend_.ForgetReplays();
}

absl::Status Forward::Run(const ExchangeShape& exchange,
                          absl::Time deadline,
                          LoweredStep* step,
                          StepOutput* output) {
  const bool is_in_slots = slots_ != nullptr && exchange.slot_rows > 0;
  const std::array<int32_t, 1> num_rows = {step->num_rows()};
  StepShape shape = ShapeOf(step->entries);
  if (parts_.num_ranks > 1) shape.replay_key = 0;  // Its own; ranks record together or not at all.
  if (is_in_slots && step->most_positions > 0) {
    shape = ShapeInSlots(exchange.slot_rows, step->most_positions);
    step->PadRows(exchange.slot_rows);
  }
  TakeRows(step->num_rows());
  const StepIndexes indexes{.token_ids = all_.token_ids.Set(step->token_ids),
                            .positions = all_.positions.Set(step->positions),
                            .full_slots = all_.full_slots.Set(step->full_slots),
                            .window_slots = all_.window_slots.Set(step->window_slots),
                            .full_tables = all_.full_tables.Set(step->full_tables),
                            .window_tables = all_.window_tables.Set(step->window_tables),
                            .entries = {all_.entries.Set(step->entries), step->entries.size()},
                            .num_rows = all_.num_rows.Set(num_rows),
                            .shape = shape};

  // Where nothing in the layers needs the host there is a key, and a device may replay them.
  absl::Status status;
  backend_.Replay(shape.replay_key, [&] {
    status = Layers(indexes, exchange, deadline);
    return status.ok();
  });
  RETURN_IF_ERROR(status);
  if (is_in_slots) RETURN_IF_ERROR(slots_->Settle(deadline));
  Sample(*step, &output->samples);
  ReturnLogits(*step, &output->logits);
  return absl::OkStatus();
}

absl::Status Forward::Layers(const StepIndexes& indexes,
                             const ExchangeShape& exchange,
                             absl::Time deadline) {
  Embed(indexes);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    Attention(indexes, layer);
    ChooseExperts(layer);
    if (parts_.num_ranks == 1) {
      ExpertsAlone(layer);
    } else if (slots_ != nullptr && exchange.slot_rows > 0) {
      RETURN_IF_ERROR(ExpertsInSlots(layer, indexes.num_rows.data, exchange.slot_rows, deadline));
    } else {
      RETURN_IF_ERROR(ExpertsByRoute(layer, exchange.num_parts, deadline));
    }
    backend_.SumSlots({.rows = act_.returned, .shares = act_.shares, .x = act_.hidden});
  }
  return absl::OkStatus();
}

void Forward::Embed(const StepIndexes& indexes) {
  backend_.Embed({.ids = indexes.token_ids, .table = weights_.embedding, .out = act_.hidden});
}

void Forward::Attention(const StepIndexes& indexes, int layer) {
  const DenseLayer& w = weights_.layers[static_cast<size_t>(layer)];
  const KvLayer kv = parts_.kv_cache->layer(layer);
  const int window = config_.window(layer);  // 128 on even layers, unlimited on odd ones.
  const bool sees_all = window == 0;

  backend_.RmsNorm({.x = act_.hidden,
                    .add = {},
                    .gain = w.attention_norm,
                    .out = act_.normed,
                    .eps = static_cast<float>(config_.norm_eps)});
  backend_.Linear({.x = act_.normed, .weight = w.qkv, .bias = w.qkv_bias, .out = act_.qkv});
  backend_.RopeAndAppend({.qkv = act_.qkv,
                          .rope = parts_.rope,
                          .positions = indexes.positions,
                          .slots = sees_all ? indexes.full_slots : indexes.window_slots,
                          .num_heads = config_.num_heads,
                          .kv = kv});
  // All K/V of the step is there before any of it is read: a chunk sees itself.
  backend_.Attention({.entries = indexes.entries,
                      .tables = sees_all ? indexes.full_tables : indexes.window_tables,
                      .q = act_.qkv,
                      .kv = kv,
                      .num_heads = config_.num_heads,
                      .window = window,
                      .sinks = w.sinks,
                      .out = act_.attended,
                      .max_entry_rows = indexes.shape.max_entry_rows,
                      .max_positions = indexes.shape.max_positions});
  backend_.Linear({.x = act_.attended, .weight = w.out, .bias = w.out_bias, .out = act_.projected});
  // `projected` joins `hidden` in the next RmsNorm: one pass over memory instead of two.
}

// From the residual stream to the chosen experts and their shares.
void Forward::ChooseExperts(int layer) {
  const DenseLayer& w = weights_.layers[static_cast<size_t>(layer)];

  backend_.RmsNorm({.x = act_.hidden,
                    .add = act_.projected,
                    .gain = w.mlp_norm,
                    .out = act_.normed,
                    .eps = static_cast<float>(config_.norm_eps)});
  backend_.Linear(
      {.x = act_.normed, .weight = w.router, .bias = w.router_bias, .out = act_.scores});
  backend_.SelectExperts({.scores = act_.scores, .ids = act_.expert_ids, .shares = act_.shares});
}

// A cell of one rank: the rows are where their experts are, and (row, slot) is the order of the
// results. Same rounding, same sums, no copies, and the host need not know who chose whom.
void Forward::ExpertsAlone(int layer) {
  const int32_t num_local = NumLocal(layer);
  const int64_t num_pairs = act_.returned.rows;
  auto* const offsets = all_.expert_offsets.row<int32_t>(0);
  auto* const pair_row = all_.pair_row.row<int32_t>(0);
  auto* const pair_out = all_.pair_out.row<int32_t>(0);
  backend_.GroupByExpert({.ids = act_.expert_ids,
                          .local_index = local_index_,
                          .num_local = num_local,
                          .expert_offsets = offsets,
                          .pair_row = pair_row,
                          .pair_out = pair_out});
  RunExperts(layer,
             act_.normed,
             {offsets, static_cast<size_t>(num_local) + 1},
             {.data = pair_row, .size = num_pairs},
             {.data = pair_out, .size = num_pairs},
             act_.returned,
             num_pairs);
}

// Steps of few rows, over an exchange that offers it: messages of fixed size, filled and read by
// the device. The same rows meet the same experts as by a route (route_math.h), so the bits are
// equal.
absl::Status Forward::ExpertsInSlots(int layer,
                                     const int32_t* num_rows,
                                     int32_t slot_rows,
                                     absl::Time deadline) {
  const SlotShape shape{.num_ranks = parts_.num_ranks,
                        .slot_rows = slot_rows,
                        .k = config_.experts_per_token,
                        .row_bytes = act_.normed.cols * DTypeBytes(DType::kBf16)};
  const int32_t num_local = NumLocal(layer);
  const int64_t num_message_rows = int64_t{shape.num_ranks} * shape.message_rows();
  const TensorView outgoing = all_.slots_out.Slice(0, num_message_rows);
  const TensorView incoming = all_.slots_in.Slice(0, num_message_rows);
  const TensorView results = all_.expert_out.Slice(0, shape.num_places());
  const TensorView returned = all_.slots_home.Slice(0, shape.num_places());
  auto* const home = all_.home.row<int32_t>(0);
  backend_.FillSlots({.ids = act_.expert_ids,
                      .x = act_.normed,
                      .table = table_,
                      .shape = shape,
                      .num_rows = num_rows,
                      .guard = slots_->guard(),
                      .messages = outgoing,
                      .home = home});
  RETURN_IF_ERROR(
      slots_->LaunchSlots(outgoing.data, incoming.data, shape.message_bytes(), deadline));

  auto* const offsets = all_.expert_offsets.row<int32_t>(0);
  auto* const pair_row = all_.pair_row.row<int32_t>(0);
  auto* const pair_out = all_.pair_out.row<int32_t>(0);
  backend_.GroupSlots({.messages = incoming,
                       .local_index = local_index_,
                       .shape = shape,
                       .num_local = num_local,
                       .guard = slots_->guard(),
                       .expert_offsets = offsets,
                       .pair_row = pair_row,
                       .pair_out = pair_out});
  RunExperts(layer,
             incoming,
             {offsets, static_cast<size_t>(num_local) + 1},
             {.data = pair_row, .size = shape.num_places()},
             {.data = pair_out, .size = shape.num_places()},
             results,
             shape.num_pairs());  // Its share, where placement and choice are even
  RETURN_IF_ERROR(slots_->LaunchSlots(results.data, returned.data, shape.result_bytes(), deadline));
  backend_.PickRows(
      {.x = returned, .index = {.data = home, .size = act_.returned.rows}, .out = act_.returned});
  return absl::OkStatus();
}

// Steps of many rows, and exchanges of host memory.
absl::Status Forward::ExpertsByRoute(int layer, int32_t num_parts, absl::Time deadline) {
  // Who goes where is planned on the host, which costs a wait.
  backend_.Read(expert_ids_.data(), act_.expert_ids.data, expert_ids_.size() * sizeof(int32_t));
  for (int32_t part = 0; part < num_parts; ++part) {
    RETURN_IF_ERROR(ExchangePart(layer, part, num_parts, deadline));
  }
  return absl::OkStatus();
}

// Rows [first, last) of this rank; those of all parts together are all rows. Which rows travel
// together, and with which of the other ranks', changes no bit: a row's result is its own.
absl::Status Forward::ExchangePart(int layer,
                                   int32_t part,
                                   int32_t num_parts,
                                   absl::Time deadline) {
  const int64_t k = config_.experts_per_token;
  const int64_t first = act_.hidden.rows * part / num_parts;
  const int64_t rows = act_.hidden.rows * (part + 1) / num_parts - first;
  PlanRoute(
      std::span(expert_ids_).subspan(static_cast<size_t>(first * k)),
      static_cast<int32_t>(rows),
      config_.experts_per_token,
      {.ranks_of_expert = parts_.placement, .self = parts_.self, .num_ranks = parts_.num_ranks},
      &route_);
  const TensorView outgoing = all_.outgoing.Slice(0, static_cast<int64_t>(route_.send_rows.size()));
  backend_.PickRows({.x = act_.normed.Slice(first, rows),
                     .index = all_.rows.Set(route_.send_rows),
                     .out = outgoing});
  // Rows to their experts. What arrives says for which of ours each row is.
  ASSIGN_OR_RETURN(const Arrivals in, parts_.exchange->Dispatch(route_, outgoing, deadline));
  const TensorView results = all_.expert_out.Slice(0, in.num_pairs());
  const IndexView offsets = all_.arrival_offsets.Set(in.expert_offsets);
  RunExperts(layer,
             in.rows,
             {offsets.data, static_cast<size_t>(offsets.size)},
             all_.pair_rows.Set(in.pair_rows),
             all_.pair_outs.Set(in.pair_outs),
             results,
             in.num_pairs());
  // Results home, one row for each (row, slot): nothing is summed on the way.
  return parts_.exchange->Combine(
      route_, in, results, act_.returned.Slice(first * k, rows * k), deadline);
}

void Forward::RunExperts(int layer,
                         const TensorView& rows,
                         std::span<const int32_t> expert_offsets,
                         IndexView pair_row,
                         IndexView pair_out,
                         const TensorView& out,
                         int64_t usual_pairs) {
  const ExpertLayer& experts = parts_.experts[static_cast<size_t>(layer)];
  backend_.ExpertMlp({.x = rows,
                      .expert_offsets = expert_offsets,
                      .pair_row = pair_row,
                      .pair_out = pair_out,
                      .gate_up = &experts.gate_up,
                      .gate_up_bias = experts.gate_up_bias,
                      .down = &experts.down,
                      .down_bias = experts.down_bias,
                      .alpha = static_cast<float>(config_.swiglu_alpha),
                      .limit = static_cast<float>(config_.swiglu_limit),
                      .out = out,
                      .usual_pairs = usual_pairs});
}

int32_t Forward::NumLocal(int layer) const {
  return static_cast<int32_t>(parts_.experts[static_cast<size_t>(layer)].gate_up.experts.size());
}

void Forward::Sample(const LoweredStep& step, std::vector<SampleResult>* results) {
  const std::span<const int32_t> rows = step.sample_rows;
  const std::span<const SampleRow> settings = step.sample_settings;
  results->assign(rows.size(), {});
  for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(slice_rows_)) {
    const size_t count = std::min(rows.size() - first, static_cast<size_t>(slice_rows_));
    backend_.Sample({.logits = Unembed(rows.subspan(first, count)),
                     .rows = settings.subspan(first, count),
                     .results = std::span(*results).subspan(first, count)});
  }
}

void Forward::ReturnLogits(const LoweredStep& step, std::vector<LogitRows>* logits) {
  const auto vocab = static_cast<size_t>(config_.vocab);
  logits->clear();
  for (const LoweredStep::Logits& wanted : step.logits) {
    std::vector<int32_t> rows(static_cast<size_t>(wanted.num_positions));
    std::iota(rows.begin(), rows.end(), wanted.first_row);
    std::vector<float> values(rows.size() * vocab);
    for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(slice_rows_)) {
      const size_t count = std::min(rows.size() - first, static_cast<size_t>(slice_rows_));
      const TensorView slice = Unembed(std::span(rows).subspan(first, count));
      backend_.Read(&values[first * vocab], slice.data, count * vocab * sizeof(float));
    }
    logits->push_back({.sequence = wanted.sequence,
                       .first_position = wanted.first_position,
                       .num_positions = wanted.num_positions,
                       .values = std::move(values)});
  }
}

// Logits of at most slice_rows_ rows: the final norm and the vocabulary only for rows that need
// them, since the unembedding is a quarter of all bytes that a token touches.
TensorView Forward::Unembed(std::span<const int32_t> rows) {
  const auto n = static_cast<int64_t>(rows.size());
  const TensorView picked = all_.picked.Slice(0, n);
  const TensorView normed = all_.normed.Slice(0, n);
  const TensorView logits = all_.logits.Slice(0, n);
  backend_.PickRows({.x = act_.hidden, .index = all_.rows.Set(rows), .out = picked});
  backend_.RmsNorm({.x = picked,
                    .add = {},
                    .gain = weights_.final_norm,
                    .out = normed,
                    .eps = static_cast<float>(config_.norm_eps)});
  backend_.Linear({.x = normed, .weight = weights_.unembedding, .bias = nullptr, .out = logits});
  return logits;
}

void Forward::TakeRows(int64_t num_rows) {
  CHECK_LE(num_rows, all_.hidden.rows);
  const int64_t k = config_.experts_per_token;
  act_ = {.hidden = all_.hidden.Slice(0, num_rows),
          .normed = all_.normed.Slice(0, num_rows),
          .qkv = all_.qkv.Slice(0, num_rows),
          .attended = all_.attended.Slice(0, num_rows),
          .projected = all_.projected.Slice(0, num_rows),
          .scores = all_.scores.Slice(0, num_rows),
          .expert_ids = all_.expert_ids.Slice(0, num_rows),
          .shares = all_.shares.Slice(0, num_rows),
          .returned = all_.returned.Slice(0, num_rows * k)};
  expert_ids_.resize(static_cast<size_t>(num_rows * k));
}

}  // namespace shoal
