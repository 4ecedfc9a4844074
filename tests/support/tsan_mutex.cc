// Makes ThreadSanitizer understand absl::Mutex as Debian ships it.
//
// Debian's Abseil is built without the sanitizer, so nobody tells it that Unlock() happens before
// the next Lock(): everything a Mutex guards would be reported as a race. In the tsan preset the
// linker sends our calls of the functions below here first (--wrap, in the top CMakeLists.txt);
// each tells the sanitizer and calls the real one. Reports of unguarded accesses stay what they
// are.
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace {

using absl::Condition;
using absl::Mutex;

// A condition, evaluated as by somebody who holds the mutex: Abseil does so inside Unlock() of any
// thread, and in the waiter before Await() returns.
struct Awaited {
  const Condition* condition;
  Mutex* mutex;

  static bool Eval(Awaited* self) {
    __tsan_acquire(self->mutex);
    const bool is_true = self->condition->Eval();
    __tsan_release(self->mutex);
    return is_true;
  }
};

}  // namespace

// Member functions, by their names in the Itanium ABI: `this` is the first argument.
#define LOCK _ZN4absl7debian35Mutex4LockEv
#define UNLOCK _ZN4absl7debian35Mutex6UnlockEv
#define TRY_LOCK _ZN4absl7debian35Mutex7TryLockEv
#define AWAIT _ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE
#define AWAIT_DEADLINE _ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE
#define AWAIT_TIMEOUT _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE
#define JOIN_INNER(a, b) a##b
#define JOIN(a, b) JOIN_INNER(a, b)
#define REAL(name) JOIN(__real_, name)
#define WRAP(name) JOIN(__wrap_, name)

extern "C" {

void REAL(LOCK)(Mutex* mutex);
void REAL(UNLOCK)(Mutex* mutex);
bool REAL(TRY_LOCK)(Mutex* mutex);
void REAL(AWAIT)(Mutex* mutex, const Condition& condition);
bool REAL(AWAIT_DEADLINE)(Mutex* mutex, const Condition& condition, absl::Time deadline);
bool REAL(AWAIT_TIMEOUT)(Mutex* mutex, const Condition& condition, absl::Duration timeout);

void WRAP(LOCK)(Mutex* mutex) {
  REAL(LOCK)(mutex);
  __tsan_acquire(mutex);
}

void WRAP(UNLOCK)(Mutex* mutex) {
  __tsan_release(mutex);
  REAL(UNLOCK)(mutex);
}

bool WRAP(TRY_LOCK)(Mutex* mutex) {
  const bool is_locked = REAL(TRY_LOCK)(mutex);
  if (is_locked) __tsan_acquire(mutex);
  return is_locked;
}

void WRAP(AWAIT)(Mutex* mutex, const Condition& condition) {
  Awaited awaited{&condition, mutex};
  const Condition wrapped(&Awaited::Eval, &awaited);
  __tsan_release(mutex);
  REAL(AWAIT)(mutex, wrapped);
  __tsan_acquire(mutex);
}

bool WRAP(AWAIT_DEADLINE)(Mutex* mutex, const Condition& condition, absl::Time deadline) {
  Awaited awaited{&condition, mutex};
  const Condition wrapped(&Awaited::Eval, &awaited);
  __tsan_release(mutex);
  const bool result = REAL(AWAIT_DEADLINE)(mutex, wrapped, deadline);
  __tsan_acquire(mutex);
  return result;
}

bool WRAP(AWAIT_TIMEOUT)(Mutex* mutex, const Condition& condition, absl::Duration timeout) {
  Awaited awaited{&condition, mutex};
  const Condition wrapped(&Awaited::Eval, &awaited);
  __tsan_release(mutex);
  const bool result = REAL(AWAIT_TIMEOUT)(mutex, wrapped, timeout);
  __tsan_acquire(mutex);
  return result;
}

}  // extern "C"
