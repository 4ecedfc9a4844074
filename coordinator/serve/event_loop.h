// The thread that owns the coordinator's core, and the only place where real time enters it.
// Others post events into one bounded queue; what the core wants done goes to a sink that must not
// wait.
#pragma once

#include <cstddef>
#include <functional>
#include <future>
#include <optional>
#include <thread>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "base/bounded_queue.h"
#include "coordinator/coordinator.h"
#include "coordinator/events.h"

namespace shoal {

class EventLoop {
 public:
  // Both are called on the loop's thread, and neither may wait, nor call Post or Status.
  using OnAction = std::function<void(Action action)>;
  using OnStatus = std::function<void(const FleetStatus& status)>;  // After every Tick

  explicit EventLoop(const CoordinatorOptions& options);
  ~EventLoop();

  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  void Start(OnAction on_action, OnStatus on_status);

  // For what must not be lost: waits while the queue is full, which slows its producer down. The
  // loop takes microseconds for an event, so a queue that stays full is our bug. After Stop it
  // does nothing. Thread-safe.
  void Post(Event event);

  // For new work: false if the queue is half full, so that there is always room for what must not
  // be lost. Thread-safe.
  bool TryPost(Event event);

  // As the core is between two events. kUnavailable after Stop. Thread-safe.
  absl::StatusOr<FleetStatus> Status();

  // Returns when the last event was handled; later ones are dropped.
  void Stop();

 private:
  using Question = std::promise<FleetStatus>;
  using Item = std::variant<Event, Question>;

  void Run();
  void Handle(const Event& event);

  // Owned by the loop's thread after Start.
  Coordinator core_;
  OnAction on_action_;
  OnStatus on_status_;
  std::vector<Action> actions_;

  BoundedQueue<Item> queue_;
  std::thread thread_;
};

}  // namespace shoal
