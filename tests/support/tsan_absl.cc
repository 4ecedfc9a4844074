// Makes ThreadSanitizer understand absl::Mutex, absl::Notification and the reference count of
// absl::Status as Debian ships them.
//
// Debian's Abseil is built without the sanitizer, so nobody tells it that Unlock() happens before
// the next Lock(): everything a Mutex guards would be reported as a race. In the tsan preset the
// linker sends our calls of the functions below here first (--wrap, in the top CMakeLists.txt);
// each tells the sanitizer and calls the real one. Reports of unguarded accesses stay what they
// are.
#include <sanitizer/tsan_interface.h>

#include <cstdint>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace {

using absl::Condition;
using absl::Mutex;
using absl::Notification;

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

// Where HasBeenNotified(), which is compiled with us, looks: behind the notification's mutex.
void* Flag(const Notification* notification) {
  return reinterpret_cast<char*>(const_cast<Notification*>(notification)) + sizeof(Mutex);
}

}  // namespace

// Member functions, by their names in the Itanium ABI: `this` is the first argument.
#define LOCK _ZN4absl7debian35Mutex4LockEv
#define UNLOCK _ZN4absl7debian35Mutex6UnlockEv
#define TRY_LOCK _ZN4absl7debian35Mutex7TryLockEv
#define AWAIT _ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE
#define AWAIT_DEADLINE _ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE
#define AWAIT_TIMEOUT _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE
#define NOTIFY _ZN4absl7debian312Notification6NotifyEv
#define WAIT _ZNK4absl7debian312Notification19WaitForNotificationEv
#define WAIT_DEADLINE _ZNK4absl7debian312Notification31WaitForNotificationWithDeadlineENS0_4TimeE
#define WAIT_TIMEOUT _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE
// Static: the count's address, tagged.
#define UNREF _ZN4absl7debian36Status15UnrefNonInlinedEm
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
void REAL(NOTIFY)(Notification* notification);
void REAL(WAIT)(const Notification* notification);
bool REAL(WAIT_DEADLINE)(const Notification* notification, absl::Time deadline);
bool REAL(WAIT_TIMEOUT)(const Notification* notification, absl::Duration timeout);
void REAL(UNREF)(uintptr_t count);

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

void WRAP(NOTIFY)(Notification* notification) {
  __tsan_release(Flag(notification));
  REAL(NOTIFY)(notification);
}

void WRAP(WAIT)(const Notification* notification) {
  REAL(WAIT)(notification);
  __tsan_acquire(Flag(notification));
}

bool WRAP(WAIT_DEADLINE)(const Notification* notification, absl::Time deadline) {
  const bool is_notified = REAL(WAIT_DEADLINE)(notification, deadline);
  if (is_notified) __tsan_acquire(Flag(notification));
  return is_notified;
}

bool WRAP(WAIT_TIMEOUT)(const Notification* notification, absl::Duration timeout) {
  const bool is_notified = REAL(WAIT_TIMEOUT)(notification, timeout);
  if (is_notified) __tsan_acquire(Flag(notification));
  return is_notified;
}

// Whoever counts last deletes what all others have read.
void WRAP(UNREF)(uintptr_t count) {
  __tsan_release(reinterpret_cast<void*>(count));
  __tsan_acquire(reinterpret_cast<void*>(count));
  REAL(UNREF)(count);
}

}  // extern "C"
