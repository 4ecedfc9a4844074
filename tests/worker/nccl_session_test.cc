#include "worker/exchange/nccl_session.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "gtest/gtest.h"

#include "base/prng.h"

namespace shoal {
namespace {

using State = NcclSession::State;
using Next = NcclSession::Next;

const absl::Time kStart = absl::UnixEpoch();
const absl::Time kDeadline = kStart + absl::Seconds(1);
const absl::Status kBroken = absl::UnavailableError("broken");

NcclSession Ready() {
  NcclSession session;
  EXPECT_TRUE(session.BeginInit(kDeadline));
  session.InitReturned(absl::OkStatus(), true);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, true, kStart, "init"), Next::kGo);
  return session;
}

TEST(NcclSessionTest, ConnectsLaunchesAndIsAbortedOnce) {
  NcclSession session;
  EXPECT_FALSE(session.BeginGroup(kDeadline));
  EXPECT_FALSE(session.may_poll());
  ASSERT_TRUE(session.BeginInit(kDeadline));
  EXPECT_FALSE(session.BeginInit(kDeadline));
  session.InitReturned(absl::OkStatus(), true);
  EXPECT_EQ(session.Polled(absl::OkStatus(), true, true, kStart, "init"), Next::kWait);
  EXPECT_FALSE(session.BeginGroup(kDeadline));  // Not yet.
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, true, kStart, "init"), Next::kGo);

  ASSERT_TRUE(session.BeginGroup(kDeadline));
  EXPECT_FALSE(session.BeginGroup(kDeadline));  // One at a time.
  session.GroupReturned(absl::OkStatus());
  // In progress: whatever the stream says, nothing need be on it.
  EXPECT_EQ(session.Polled(absl::OkStatus(), true, true, kStart, "group"), Next::kWait);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, false, kStart, "group"), Next::kWait);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, true, kStart, "group"), Next::kGo);

  session.Fail(absl::AbortedError("left"));
  EXPECT_TRUE(session.TakeAbort());
  EXPECT_FALSE(session.TakeAbort());
  EXPECT_FALSE(session.may_poll());
  session.AbortReturned();
  EXPECT_EQ(session.state(), State::kGone);
  EXPECT_FALSE(session.BeginInit(kDeadline));
}

// A recorded step is replayed without a call of NCCL's: what is on the stream has a deadline, too.
TEST(NcclSessionTest, WhatCameOntoTheStreamByItselfHasADeadline) {
  NcclSession session = Ready();
  const absl::Time late = kDeadline + absl::Seconds(5);
  session.ExpectBy(late);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, false, kDeadline, "step"), Next::kWait);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, false, late, "step"), Next::kLeave);
  EXPECT_EQ(session.status(), absl::DeadlineExceededError("step passed its deadline"));
}

TEST(NcclSessionTest, TheFirstErrorStays) {
  NcclSession session = Ready();
  session.Fail(kBroken);
  session.Fail(absl::AbortedError("later"));
  EXPECT_EQ(session.status(), kBroken);
  EXPECT_EQ(session.Polled(absl::OkStatus(), false, true, kStart, "x"), Next::kLeave);
}

TEST(NcclSessionTest, AnAbortDuringTheInitCallWaitsForItsReturn) {
  NcclSession session;
  ASSERT_TRUE(session.BeginInit(kDeadline));
  session.Fail(absl::AbortedError("the epoch is over"));
  EXPECT_FALSE(session.TakeAbort()) << "there is no handle yet";
  session.InitReturned(absl::OkStatus(), true);
  EXPECT_TRUE(session.TakeAbort());
}

TEST(NcclSessionTest, WhatWasNeverConnectedNeedsNoAbort) {
  NcclSession never;
  never.Fail(absl::AbortedError("left"));
  EXPECT_EQ(never.state(), State::kGone);
  NcclSession refused;
  ASSERT_TRUE(refused.BeginInit(kDeadline));
  refused.InitReturned(kBroken, false);
  EXPECT_FALSE(refused.TakeAbort());
  EXPECT_EQ(refused.state(), State::kGone);
  NcclSession both;
  ASSERT_TRUE(both.BeginInit(kDeadline));
  both.Fail(absl::AbortedError("left"));
  both.InitReturned(kBroken, false);
  EXPECT_EQ(both.state(), State::kGone);
}

TEST(NcclSessionTest, DeadlinesEndInitAndGroups) {
  NcclSession session;
  ASSERT_TRUE(session.BeginInit(kDeadline));
  session.InitReturned(absl::OkStatus(), true);
  EXPECT_EQ(session.Polled(absl::OkStatus(), true, true, kDeadline, "the init"), Next::kLeave);
  EXPECT_EQ(session.status(), absl::DeadlineExceededError("the init passed its deadline"));
  EXPECT_TRUE(session.TakeAbort());

  NcclSession working = Ready();
  ASSERT_TRUE(working.BeginGroup(kDeadline));
  EXPECT_EQ(working.Polled(absl::OkStatus(), false, false, kDeadline, "op"), Next::kLeave);
  // What is done in time is done, however late it is asked.
  NcclSession done = Ready();
  ASSERT_TRUE(done.BeginGroup(kDeadline));
  EXPECT_EQ(done.Polled(absl::OkStatus(), false, true, kDeadline, "op"), Next::kGo);
}

// Any order of answers, errors and aborts that threads can produce: what NCCL would not forgive
// never becomes permitted, and it always ends.
TEST(NcclSessionTest, NoOrderOfEventsPermitsACallAfterTheAbort) {
  uint64_t seeds = 10'000;
  if (const char* text = std::getenv("SHOAL_SEEDS")) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &seeds));
  }
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    SCOPED_TRACE(seed);
    Prng prng(seed);
    NcclSession session;
    bool is_in_init = false;
    bool has_comm = false;
    int aborts = 0;
    absl::Time now = kStart;
    for (int i = 0; i < 40; ++i) {
      now += absl::Milliseconds(prng.Below(100));
      const bool was_ok = session.status().ok();
      switch (prng.Below(7)) {
        case 0:
          if (session.BeginInit(now + absl::Milliseconds(prng.Below(200)))) {
            EXPECT_TRUE(was_ok);
            is_in_init = true;
          }
          break;
        case 1:
          if (is_in_init) {
            has_comm = prng.Chance(75);
            const bool is_ok = has_comm && prng.Chance(80);
            session.InitReturned(is_ok ? absl::OkStatus() : kBroken, has_comm);
            is_in_init = false;
          }
          break;
        case 2:
          if (!is_in_init && session.BeginGroup(now + absl::Milliseconds(prng.Below(200)))) {
            EXPECT_TRUE(was_ok && has_comm && aborts == 0);
            if (prng.Chance(20)) session.Fail(kBroken);  // Between begin and end.
            session.GroupReturned(prng.Chance(90) ? absl::OkStatus() : kBroken);
          }
          break;
        case 3:
        case 4:
          if (!is_in_init && session.may_poll()) {
            EXPECT_TRUE(was_ok && has_comm && aborts == 0);
            session.Polled(prng.Chance(90) ? absl::OkStatus() : kBroken,
                           prng.Chance(30),
                           prng.Chance(50),
                           now,
                           "op");
          }
          break;
        case 5:
          if (prng.Chance(20)) session.Fail(absl::AbortedError("asked"));
          break;
        case 6:
          if (session.TakeAbort()) {
            EXPECT_TRUE(has_comm && !is_in_init);
            EXPECT_EQ(++aborts, 1);
            session.AbortReturned();
          }
          break;
      }
      EXPECT_TRUE(was_ok || !session.status().ok());
    }
    // The end, as NcclComm's destructor makes it.
    if (is_in_init) session.InitReturned(absl::OkStatus(), has_comm = true);
    session.Fail(absl::AbortedError("left"));
    if (session.TakeAbort()) {
      EXPECT_EQ(++aborts, 1);
      session.AbortReturned();
    }
    EXPECT_EQ(session.state(), State::kGone);
    EXPECT_EQ(aborts, has_comm ? 1 : 0);
    ASSERT_FALSE(HasFailure());
  }
}

}  // namespace
}  // namespace shoal
