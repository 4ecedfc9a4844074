// A client that reads an answer, whatever it came by: a gRPC call, an HTTP request. Delivery gives
// it one message after the other.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace shoal {

class StreamReader {
 public:
  // What became of it. Called from any thread, also while a call below is running.
  class Events {
   public:
    virtual ~Events() = default;
    // The last message was taken over; false: it never will be.
    virtual void OnWritten(bool ok) = 0;
    virtual void OnGone() = 0;
    // After Finish; the last call. The reader is destroyed soon after.
    virtual void OnDone() = 0;
  };

  virtual ~StreamReader() = default;

  // Before everything else; `events` lives until OnDone.
  virtual void Start(Events* events) = 0;
  // REQUIRES: OnWritten was called for the message before.
  virtual void Write(std::string message) = 0;
  // Once. Nothing follows. With a status that is not OK also while a message is being written.
  virtual void Finish(const absl::Status& status) = 0;
};

}  // namespace shoal
