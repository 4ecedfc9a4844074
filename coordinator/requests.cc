#include "coordinator/requests.h"

#include <algorithm>

#include "base/check.h"
#include "coordinator/schedule/admission.h"

namespace shoal {
namespace {

Accepted AcceptedBy(StreamId stream, const RequestState& request) {
  return Accepted{.stream = stream,
                  .request_id = request.request.id,
                  .prompt_tokens = request.prompt_tokens,
                  .envelope = request.request.envelope};
}

}  // namespace

Sequence NewSequence(SequenceId id,
                     const RequestState& request,
                     int32_t choice,
                     const std::vector<TokenId>& prompt) {
  const Request& asked = request.request;
  Sequence sequence;
  sequence.id = id;
  sequence.request = request.number;
  sequence.choice = choice;
  sequence.prompt_length = request.prompt_tokens;
  sequence.max_length = request.prompt_tokens + (asked.wants_prompt_logits ? 0 : asked.max_tokens);
  sequence.sampling = asked.sampling;
  sequence.sampling.seed = ChoiceSeed(asked.sampling.seed, choice);
  sequence.cache_scope = CacheScope(asked.tenant, asked.cache_salt);
  sequence.uses_prefix_cache = asked.use_prefix_cache && !asked.wants_prompt_logits;
  sequence.wants_prompt_logits = asked.wants_prompt_logits;
  sequence.is_constrained = asked.is_constrained && !asked.wants_prompt_logits;
  sequence.envelope = asked.envelope;
  sequence.tokens = prompt;
  return sequence;
}

Requests::Requests(absl::Duration retention, int32_t max_retained)
    : retention_(retention), max_retained_(max_retained) {}

RequestState* Requests::Add(absl::Time now, Request request) {
  const uint64_t number = ++last_number_;
  CHECK(by_name_.emplace(std::pair(request.tenant, request.id), number).second);
  RequestState& state = requests_[number];
  state.number = number;
  state.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  state.arrival = now;
  state.is_kept = request.is_named;
  state.choices.resize(static_cast<size_t>(request.num_choices));
  state.num_unfinished = request.num_choices;
  state.request = std::move(request);
  state.request.prompt.clear();
  state.request.prompt.shrink_to_fit();
  if (state.request.deadline != absl::InfiniteFuture()) {
    deadlines_.emplace(state.request.deadline, number);
  }
  return &state;
}

RequestState* Requests::Find(absl::string_view tenant, absl::string_view id) {
  const auto found = by_name_.find(std::pair(std::string(tenant), std::string(id)));
  return found == by_name_.end() ? nullptr : At(found->second);
}

RequestState* Requests::At(uint64_t number) {
  const auto found = requests_.find(number);
  return found == requests_.end() ? nullptr : &found->second;
}

RequestState* Requests::OfReader(StreamId stream) {
  const auto found = readers_.find(stream);
  return found == readers_.end() ? nullptr : At(found->second.request);
}

void Requests::Attach(StreamId stream,
                      int32_t choice,
                      int32_t next_index,
                      RequestState* request,
                      std::vector<Action>* actions) {
  const size_t num_choices = request->choices.size();
  Reader reader{.request = request->number, .choice = choice};
  reader.next_index.assign(num_choices, next_index);
  reader.is_done.assign(num_choices, false);
  CHECK(readers_.emplace(stream, std::move(reader)).second);
  request->readers.insert(stream);
  if (!request->is_finished()) ForgetAt(absl::InfiniteFuture(), request);
  if (!request->is_announced) return;
  actions->push_back(AcceptedBy(stream, *request));
  const int32_t begin = choice < 0 ? 0 : choice;
  const int32_t end = choice < 0 ? static_cast<int32_t>(num_choices) : choice + 1;
  for (int32_t c = begin; c < end; ++c) Tell(stream, *request, c, actions);
}

void Requests::Detach(StreamId stream) {
  const auto found = readers_.find(stream);
  if (found == readers_.end()) return;
  if (RequestState* request = At(found->second.request); request != nullptr) {
    request->readers.erase(stream);
  }
  readers_.erase(found);
}

void Requests::Announce(RequestState* request, std::vector<Action>* actions) {
  if (std::exchange(request->is_announced, true)) return;
  for (const StreamId stream : request->readers) {
    actions->push_back(AcceptedBy(stream, *request));
  }
}

void Requests::Deliver(RequestState* request, int32_t choice, std::vector<Action>* actions) {
  // A reader that has heard everything leaves the set.
  const std::set<StreamId> readers = request->readers;
  for (const StreamId stream : readers) Tell(stream, *request, choice, actions);
}

void Requests::DeliverLogits(RequestState* request,
                             const LogitRows& rows,
                             std::vector<Action>* actions) {
  // Positions computed again after a loss have been told already.
  const int32_t known = request->logits_emitted - rows.first_position;
  if (known < 0 || known >= rows.num_positions) return;
  LogitRows fresh = rows;
  const size_t vocabulary = rows.values.size() / static_cast<size_t>(rows.num_positions);
  fresh.first_position += known;
  fresh.num_positions -= known;
  fresh.values.erase(
      fresh.values.begin(),
      fresh.values.begin() + static_cast<ptrdiff_t>(vocabulary * static_cast<size_t>(known)));
  request->logits_emitted += fresh.num_positions;
  for (const StreamId stream : request->readers) actions->push_back(EmitLogits{stream, fresh});
}

// What the reader has not heard of the choice: tokens, then its end.
void Requests::Tell(StreamId stream,
                    const RequestState& request,
                    int32_t c,
                    std::vector<Action>* actions) {
  const auto found = readers_.find(stream);
  if (found == readers_.end()) return;
  Reader& reader = found->second;
  if (reader.choice >= 0 && reader.choice != c) return;
  const size_t index = static_cast<size_t>(c);
  const Choice& choice = request.choices[index];
  int32_t& next = reader.next_index[index];
  if (next < static_cast<int32_t>(choice.output.size())) {
    Emit emit{.stream = stream, .choice = c, .first_index = next};
    emit.tokens.assign(choice.output.begin() + next, choice.output.end());
    next = static_cast<int32_t>(choice.output.size());
    actions->push_back(std::move(emit));
  }
  if (!choice.is_finished || reader.is_done[index]) return;
  reader.is_done[index] = true;
  const bool is_last =
      reader.choice >= 0 ||
      std::all_of(reader.is_done.begin(), reader.is_done.end(), [](bool done) { return done; });
  actions->push_back(shoal::Finish{.stream = stream,
                                   .choice = c,
                                   .reason = choice.reason,
                                   .error = choice.error,
                                   .stop_token = choice.stop_token,
                                   .usage = choice.usage,
                                   .timings = choice.timings,
                                   .is_last_choice = is_last});
  if (is_last) Detach(stream);
}

void Requests::Finish(absl::Time now,
                      FinishReason reason,
                      absl::Status error,
                      RequestState* request,
                      int32_t c,
                      std::vector<Action>* actions) {
  Choice& choice = request->choices[static_cast<size_t>(c)];
  CHECK(!choice.is_finished);
  choice.is_finished = true;
  choice.reason = reason;
  choice.error = std::move(error);
  choice.usage.prompt_tokens = request->prompt_tokens;
  choice.usage.completion_tokens = static_cast<int32_t>(choice.output.size());
  choice.timings.total = now - request->arrival;
  --request->num_unfinished;
  if (request->is_finished()) deadlines_.erase({request->request.deadline, request->number});
  Announce(request, actions);
  Deliver(request, c, actions);
  if (!request->is_finished()) return;
  if (!request->is_kept) {
    Erase(request);
    return;
  }
  ++num_retained_;
  ForgetAt(now + retention_, request);
  // The oldest finished one makes room. Parked unfinished ones are not finished requests.
  for (auto it = forget_.begin(); num_retained_ > max_retained_; it = forget_.begin()) {
    while (!At(it->second)->is_finished()) ++it;
    Erase(At(it->second));
  }
}

void Requests::Refuse(absl::Status status, RequestState* request, std::vector<Action>* actions) {
  for (const StreamId stream : request->readers) {
    actions->push_back(shoal::Refuse{stream, status});
  }
  Erase(request);
}

void Requests::Park(absl::Time now, RequestState* request) {
  request->is_kept = true;
  if (!request->request.is_named && !request->is_finished()) ForgetAt(now + retention_, request);
}

std::vector<Requests::Overdue> Requests::Expire(absl::Time now) {
  std::vector<Overdue> overdue;
  std::set<uint64_t> seen;
  for (const auto& [when, number] : deadlines_) {
    if (when > now) break;
    overdue.push_back({number, FinishReason::kDeadline});
    seen.insert(number);
  }
  std::vector<uint64_t> gone;
  for (const auto& [when, number] : forget_) {
    if (when > now) break;
    gone.push_back(number);
  }
  for (const uint64_t number : gone) {
    RequestState* const request = At(number);
    if (request->is_finished()) {
      Erase(request);
    } else if (seen.insert(number).second) {
      overdue.push_back({number, FinishReason::kCancelled});
    }
  }
  return overdue;
}

absl::Time Requests::NextDeadline() const {
  absl::Time next = absl::InfiniteFuture();
  if (!deadlines_.empty()) next = std::min(next, deadlines_.begin()->first);
  if (!forget_.empty()) next = std::min(next, forget_.begin()->first);
  return next;
}

void Requests::ForgetAt(absl::Time when, RequestState* request) {
  forget_.erase({request->forget_at, request->number});
  request->forget_at = when;
  if (when != absl::InfiniteFuture()) forget_.emplace(when, request->number);
}

void Requests::Erase(RequestState* request) {
  const std::set<StreamId> readers = request->readers;
  for (const StreamId stream : readers) Detach(stream);
  ForgetAt(absl::InfiniteFuture(), request);
  deadlines_.erase({request->request.deadline, request->number});
  if (request->is_finished() && request->is_kept) --num_retained_;
  by_name_.erase({request->request.tenant, request->request.id});
  const uint64_t number = request->number;
  requests_.erase(number);
}

}  // namespace shoal
