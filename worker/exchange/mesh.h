// Connects every rank of an epoch with every other. The higher rank of two dials.
//
// Ranks enter an epoch at different times. Who is dialled before it has entered lets the dialler
// wait: unaccepted in the listener's queue, or parked if it is busy with an earlier epoch (it then
// also learns that its epoch is over). Who dials a rank that has gone on to a later epoch is told
// so. Everything else (nobody there yet, a connection that ends, a wrong key) is tried again until
// the deadline. Strangers cost a bounded number of descriptors and nothing else.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "worker/exchange/descriptor.h"
#include "worker/exchange/exchange.h"
#include "worker/exchange/handshake.h"
#include "worker/exchange/listener.h"

namespace shoal {

// [ranks] connected non-blocking sockets; the own entry is closed.
using Mesh = std::vector<Descriptor>;

// A connection whose Hello has been read and found too early.
struct ParkedGuest {
  Descriptor fd;
  Hello hello;
};

// Threads: one calls Connect(); Wake() may come from any.
class MeshBuilder {
 public:
  explicit MeshBuilder(std::unique_ptr<Listener> listener);

  const std::string& endpoint() const { return listener_->endpoint(); }

  // Collective over the members. Errors as in exchange.h, with suspects attached.
  absl::StatusOr<Mesh> Connect(const Membership& membership, absl::Time deadline);

  // Forgets earlier calls of Wake().
  void Arm();
  // Connect() returns kAborted soon.
  void Wake();

  // Readable while woken.
  int wake_fd() const { return wake_.get(); }

 private:
  const std::unique_ptr<Listener> listener_;
  const Descriptor wake_;  // eventfd
  std::vector<ParkedGuest> parked_;
};

}  // namespace shoal
