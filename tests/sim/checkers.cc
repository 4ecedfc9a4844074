#include "tests/sim/checkers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace shoal::sim {

void StreamChecker::Open(StreamId stream, const Asked* asked, int32_t choice, int32_t next_index) {
  View view{.asked = asked, .choice = choice};
  const size_t num_choices = static_cast<size_t>(asked->request.num_choices);
  view.next_index.assign(num_choices, next_index);
  view.is_finished.assign(num_choices, false);
  views_[stream] = std::move(view);
}

void StreamChecker::Close(StreamId stream) {
  views_.at(stream).is_closed = true;
}

int32_t StreamChecker::num_open() const {
  return static_cast<int32_t>(std::count_if(views_.begin(), views_.end(), [](const auto& v) {
    return !v.second.is_closed && !v.second.has_ended;
  }));
}

int32_t StreamChecker::NextIndex(StreamId stream, int32_t choice) const {
  return views_.at(stream).next_index[static_cast<size_t>(choice)];
}

void StreamChecker::CheckAllEnded() {
  for (const auto& [stream, view] : views_) {
    if (view.is_closed || view.has_ended) continue;
    violation_(absl::StrCat("liveness: stream ",
                            stream.value,
                            " of request ",
                            view.asked->request.id,
                            " never ended",
                            view.is_accepted ? "" : ", never accepted"));
  }
}

StreamChecker::View* StreamChecker::Hear(StreamId stream) {
  const auto found = views_.find(stream);
  if (found == views_.end()) {
    violation_(absl::StrCat("stream: nobody opened ", stream.value));
    return nullptr;
  }
  View& view = found->second;
  if (view.has_ended) violation_(absl::StrCat("stream: ", stream.value, " goes on after its end"));
  if (view.is_closed) violation_(absl::StrCat("stream: ", stream.value, " is told after it left"));
  return &view;
}

void StreamChecker::See(const Action& action) {
  if (const auto* accepted = std::get_if<Accepted>(&action)) {
    View* const view = Hear(accepted->stream);
    if (view == nullptr) return;
    if (view->is_accepted) violation_(absl::StrCat("stream: accepted twice"));
    view->is_accepted = true;
  } else if (const auto* refuse = std::get_if<Refuse>(&action)) {
    View* const view = Hear(refuse->stream);
    if (view == nullptr) return;
    if (view->is_accepted) violation_("stream: refused after it was accepted");
    if (refuse->status.ok()) violation_("stream: refused without a reason");
    view->has_ended = true;
    view->refusal = refuse->status;
  } else if (const auto* emit = std::get_if<Emit>(&action)) {
    SeeEmit(*emit);
  } else if (const auto* logits = std::get_if<EmitLogits>(&action)) {
    SeeLogits(*logits);
  } else if (const auto* finish = std::get_if<Finish>(&action)) {
    SeeFinish(*finish);
  }
}

void StreamChecker::SeeEmit(const Emit& emit) {
  View* const view = Hear(emit.stream);
  if (view == nullptr) return;
  if (!view->is_accepted) violation_("stream: tokens before Accepted");
  const size_t choice = static_cast<size_t>(emit.choice);
  int32_t& next = view->next_index.at(choice);
  if (emit.first_index != next || view->is_finished[choice]) {
    violation_(absl::StrCat(
        "stream: token ", emit.first_index, " where ", next, " is next: lost or repeated"));
  }
  const std::vector<TokenId>& expected = view->asked->expected[choice].output;
  for (const OutputToken& token : emit.tokens) {
    if (static_cast<size_t>(next) >= expected.size() ||
        expected[static_cast<size_t>(next)] != token.token) {
      violation_(absl::StrCat("stream: token ",
                              next,
                              " of request ",
                              view->asked->request.id,
                              " is not the undisturbed run's"));
      return;
    }
    ++next;
  }
}

void StreamChecker::SeeLogits(const EmitLogits& emit) {
  View* const view = Hear(emit.stream);
  if (view == nullptr) return;
  if (emit.rows.first_position != view->next_logits) {
    violation_(absl::StrCat(
        "stream: logits of ", emit.rows.first_position, ", next is ", view->next_logits));
  }
  const std::vector<uint64_t> prefixes =
      Prefixes({view->asked->request.prompt.data(), view->asked->request.prompt.size()});
  for (const float value : emit.rows.values) {
    const size_t position = static_cast<size_t>(view->next_logits++);
    if (value != static_cast<float>(prefixes.at(position) % 1000)) {
      violation_(absl::StrCat("stream: logits of position ", position, " are another's"));
      return;
    }
  }
}

void StreamChecker::SeeFinish(const Finish& finish) {
  View* const view = Hear(finish.stream);
  if (view == nullptr) return;
  const Asked& asked = *view->asked;
  const size_t choice = static_cast<size_t>(finish.choice);
  if (view->is_finished[choice]) violation_("stream: one choice finished twice");
  view->is_finished[choice] = true;
  const Expected& expected = asked.expected[choice];
  const int32_t heard = view->next_index[choice];
  bool may_be = false;
  switch (finish.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
    case FinishReason::kError:
      may_be =
          finish.reason == expected.reason && heard >= static_cast<int32_t>(expected.output.size());
      break;
    case FinishReason::kStopString:
      may_be = asked.may_stop;
      break;
    case FinishReason::kCancelled:
      may_be = asked.may_cancel;
      break;
    case FinishReason::kDeadline:
      may_be = asked.request.deadline != absl::InfiniteFuture();
      break;
  }
  if (asked.request.wants_prompt_logits && finish.reason == FinishReason::kLength) {
    may_be = view->next_logits == static_cast<int32_t>(asked.request.prompt.size());
  }
  if (!may_be) {
    violation_(absl::StrCat("stream: request ",
                            asked.request.id,
                            " finished with reason ",
                            static_cast<int>(finish.reason),
                            " after ",
                            heard,
                            " tokens of ",
                            expected.output.size(),
                            ": ",
                            finish.error.ToString()));
  }
  if (finish.usage.prompt_tokens != static_cast<int32_t>(asked.request.prompt.size())) {
    violation_("stream: wrong prompt length in the usage");
  }
  const bool is_last = view->choice >= 0 || std::all_of(view->is_finished.begin(),
                                                        view->is_finished.end(),
                                                        [](bool done) { return done; });
  if (is_last != finish.is_last_choice) violation_("stream: wrong is_last_choice");
  view->has_ended = is_last;
}

void PlanChecker::Reset(WorkerId worker) {
  books_.erase(worker);
}

void PlanChecker::Returned(WorkerId worker, StepId step) {
  books_[worker].in_flight.erase(step);
}

PlanChecker::Use PlanChecker::UseOf(const PlanEntry& entry, Books* books) {
  std::vector<BlockId>& full = books->full[entry.sequence];
  std::vector<BlockId>& window = books->window[entry.sequence];
  full.resize(static_cast<size_t>(entry.first_block));
  window.resize(static_cast<size_t>(entry.first_block));
  full.insert(full.end(), entry.full_blocks.begin(), entry.full_blocks.end());
  window.insert(window.end(), entry.window_blocks.begin(), entry.window_blocks.end());
  Use use{.sequence = entry.sequence};
  const int32_t end = entry.first_position + entry.num_positions;
  for (int32_t p = 0; p < end; ++p) {
    const size_t block = static_cast<size_t>(p / kPlanBlockTokens);
    const bool is_written = p >= entry.first_position;
    (is_written ? use.written_full : use.seen_full).insert(full.at(block));
    if (window_ == 0 || p <= entry.first_position - window_) continue;
    (is_written ? use.written_window : use.seen_window).insert(window.at(block));
  }
  return use;
}

void PlanChecker::Compare(const Use& a, const Use& b) {
  if (a.sequence == b.sequence) return;
  const auto meet = [](const std::set<BlockId>& x, const std::set<BlockId>& y) {
    return std::any_of(x.begin(), x.end(), [&](BlockId block) { return y.contains(block); });
  };
  const bool is_clash =
      meet(a.written_full, b.written_full) || meet(a.written_full, b.seen_full) ||
      meet(a.seen_full, b.written_full) || meet(a.written_window, b.written_window) ||
      meet(a.written_window, b.seen_window) || meet(a.seen_window, b.written_window);
  if (!is_clash) return;
  violation_(absl::StrCat("blocks: plans in flight let sequences ",
                          a.sequence.value,
                          " and ",
                          b.sequence.value,
                          " use one block that one of them writes"));
}

// All ranks of a step hear the same, and it holds for what each of them has.
void PlanChecker::CheckBounds(const StepPlan& plan) {
  const Bounds bounds{.epoch = plan.epoch,
                      .step = plan.step,
                      .most_rows = plan.most_rows,
                      .most_positions = plan.most_positions};
  Bounds& newest = bounds_[plan.cell];
  const bool is_known = newest.epoch == plan.epoch && newest.step == plan.step;
  bool holds = !is_known || newest == bounds;
  newest = bounds;
  int32_t rows = 0;
  for (const PlanEntry& entry : plan.entries) {
    rows += entry.num_positions;
    if (plan.most_positions == 0) continue;
    holds = holds && entry.num_positions == 1 && entry.first_position < plan.most_positions;
  }
  if (holds && rows <= plan.most_rows) return;
  violation_(absl::StrCat("bounds: step ",
                          plan.step.value,
                          " of at most ",
                          plan.most_rows,
                          " rows and ",
                          plan.most_positions,
                          " positions is another for one of its ranks"));
}

void PlanChecker::Sent(WorkerId worker, const StepPlan& plan) {
  CheckBounds(plan);
  Books& books = books_[worker];
  std::vector<Use>& uses = books.in_flight[plan.step];
  for (const PlanEntry& entry : plan.entries) {
    const Use use = UseOf(entry, &books);
    for (const auto& [step, others] : books.in_flight) {
      for (const Use& other : others) Compare(use, other);
    }
    uses.push_back(use);
  }
}

}  // namespace shoal::sim
