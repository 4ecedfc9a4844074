#include "coordinator/serve/event_loop.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"

#include "base/check.h"

namespace shoal {
namespace {

// A burst of ten thousand clients, several times over.
constexpr size_t kQueueCapacity = 65'536;
constexpr absl::Duration kTickPeriod = absl::Milliseconds(50);
// The core answers within microseconds; this only turns a hang into an error.
constexpr absl::Duration kPatience = absl::Seconds(60);

}  // namespace

EventLoop::EventLoop(const CoordinatorOptions& options) : core_(options), queue_(kQueueCapacity) {}

EventLoop::~EventLoop() {
  Stop();
}

void EventLoop::Start(OnAction on_action, OnStatus on_status) {
  CHECK(!thread_.joinable());
  on_action_ = std::move(on_action);
  on_status_ = std::move(on_status);
  thread_ = std::thread([this] { Run(); });
}

void EventLoop::Stop() {
  queue_.Close();
  if (thread_.joinable()) thread_.join();
}

void EventLoop::Post(Event event) {
  if (queue_.Push(Item(std::move(event)), absl::Now() + kPatience)) return;
  CHECK(queue_.closed());
}

bool EventLoop::TryPost(Event event) {
  if (queue_.size() >= kQueueCapacity / 2) return false;
  return queue_.TryPush(Item(std::move(event)));
}

absl::StatusOr<FleetStatus> EventLoop::Status() {
  Question question;
  std::future<FleetStatus> answer = question.get_future();
  if (!queue_.Push(Item(std::move(question)), absl::Now() + kPatience)) {
    return absl::UnavailableError("the coordinator is stopping");
  }
  CHECK(answer.wait_for(absl::ToChronoSeconds(kPatience)) == std::future_status::ready);
  return answer.get();
}

void EventLoop::Run() {
  absl::Time next_tick = absl::Now();
  while (true) {
    std::optional<Item> item = queue_.Pop(std::min(next_tick, core_.NextDeadline()));
    if (!item.has_value() && queue_.closed()) return;
    if (item.has_value()) {
      if (Event* event = std::get_if<Event>(&*item)) {
        Handle(*event);
      } else {
        std::get<Question>(*item).set_value(core_.Status(absl::Now()));
      }
    }
    const absl::Time now = absl::Now();
    if (now < next_tick && now < core_.NextDeadline()) continue;
    Handle(Tick{});
    on_status_(core_.Status(now));
    next_tick = now + kTickPeriod;
  }
}

void EventLoop::Handle(const Event& event) {
  actions_.clear();
  core_.Handle(absl::Now(), event, &actions_);
  for (Action& action : actions_) on_action_(std::move(action));
}

}  // namespace shoal
