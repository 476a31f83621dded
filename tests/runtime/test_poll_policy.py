"""When a claimer looks again and what it says to those who spawn."""

from __future__ import annotations

from itertools import count

from sa_durable.runtime.loops.poll_policy import (
    AFTER_WORK_PAUSES_S,
    BURST_NOTIFICATIONS,
    BURST_WINDOW_S,
    NO_CAPACITY_S,
    STREAM_MIN_FOUND,
    STREAM_PAUSE_S,
    NextPoll,
    NotifyRequest,
    PollPolicy,
)
from sa_durable.runtime.tuning import DEFAULT_TUNING

POLL = 0.25
RENEW_AFTER_S = DEFAULT_TUNING.renew_notify_after_s
RETRY_NOTIFY_AFTER_S = DEFAULT_TUNING.retry_notify_after_s


class Claimer:
    """Looks when it was told to, unless a test says after how many seconds."""

    def __init__(self) -> None:
        self.policy, self.now, self.received, self.connection = PollPolicy(POLL), 100.0, 0, 1
        self.pause = 0.0

    def look(self, *, found: int = 0, available: bool = True, after: float | None = None) -> NextPoll:
        self.now += self.pause if after is None else after
        decided = self.policy.after_claims(
            self.now, found=found, available=available, connection=self.connection, received=self.received
        )
        self.pause = decided.pause_s
        return decided

    def told(self, *, after: float, found: int = 1, available: bool = True) -> NextPoll:
        """Look because of a notification."""
        self.received += 1
        return self.look(found=found, available=available, after=after)

    def until_idle(self) -> list[float]:
        """The pauses until it asks to be notified."""
        pauses = []
        while (decided := self.look()).notify_request is not NotifyRequest.ENABLE:
            pauses.append(decided.pause_s)
        assert decided.pause_s == 0  # it looks once more, at once
        return pauses


def test_after_the_last_work_the_pauses_grow_and_then_it_asks_and_polls():
    claimer = Claimer()
    assert claimer.until_idle() == list(AFTER_WORK_PAUSES_S)
    assert [claimer.look() for _ in range(3)] == [NextPoll(POLL)] * 3


def test_work_restarts_the_pauses():
    claimer = Claimer()
    for _ in AFTER_WORK_PAUSES_S:
        claimer.look()
    claimer.look(found=1)
    assert claimer.until_idle() == list(AFTER_WORK_PAUSES_S[1:])


def test_polls_that_find_many_tasks_get_less_frequent():
    claimer = Claimer()
    assert [claimer.look(found=STREAM_MIN_FOUND - 1).pause_s for _ in range(3)] == [
        AFTER_WORK_PAUSES_S[0]
    ] * 3
    assert [claimer.look(found=STREAM_MIN_FOUND).pause_s for _ in range(4)] == [
        AFTER_WORK_PAUSES_S[0],
        STREAM_PAUSE_S,
        STREAM_PAUSE_S,
        STREAM_PAUSE_S,
    ]
    assert claimer.look().pause_s == AFTER_WORK_PAUSES_S[1]


def test_without_a_connection_it_polls_and_with_a_new_one_it_asks_again():
    claimer = Claimer()
    claimer.until_idle()
    claimer.connection = 0
    assert [claimer.look(found=1), claimer.look()] == [NextPoll(POLL)] * 2
    claimer.connection = 2
    claimer.until_idle()


def test_it_asks_again_from_time_to_time_and_when_it_missed_something():
    claimer = Claimer()
    claimer.until_idle()
    assert claimer.look(after=RENEW_AFTER_S).notify_request is NotifyRequest.ENABLE
    assert claimer.look(found=1).notify_request is NotifyRequest.UNCHANGED  # it has just asked
    assert claimer.look(found=1, after=RETRY_NOTIFY_AFTER_S).notify_request is NotifyRequest.ENABLE
    assert claimer.told(after=RETRY_NOTIFY_AFTER_S).notify_request is NotifyRequest.UNCHANGED


def test_single_notifications_are_fine_and_a_burst_of_them_is_called_off():
    claimer = Claimer()
    claimer.until_idle()
    for _ in range(5 * BURST_NOTIFICATIONS):
        assert (
            claimer.told(after=2 * BURST_WINDOW_S / BURST_NOTIFICATIONS).notify_request
            is NotifyRequest.UNCHANGED
        )
    claimer.received += 3 * BURST_NOTIFICATIONS  # of sleepers or events: nobody looked because of them
    assert claimer.look(after=POLL).notify_request is NotifyRequest.DISABLE
    claimer.until_idle()
    called_off = next(
        n
        for n in count(1)
        if claimer.told(after=BURST_WINDOW_S / BURST_NOTIFICATIONS / 10).notify_request
        is NotifyRequest.DISABLE
    )
    assert BURST_NOTIFICATIONS / 2 <= called_off <= 2 * BURST_NOTIFICATIONS
    assert claimer.until_idle()


def test_notifications_are_disabled_without_capacity_until_idle():
    claimer = Claimer()
    claimer.until_idle()
    assert claimer.told(available=False, after=0.01) == NextPoll(NO_CAPACITY_S)
    assert claimer.look(available=False, after=2 * NO_CAPACITY_S) == NextPoll(POLL, NotifyRequest.DISABLE)
    assert claimer.look(available=False) == NextPoll(POLL)
    assert claimer.until_idle() == list(AFTER_WORK_PAUSES_S)


def test_without_room_for_a_moment_nothing_changes():
    claimer = Claimer()
    claimer.until_idle()
    for _ in range(5):
        assert claimer.told(available=False, after=0.01) == NextPoll(NO_CAPACITY_S)
        assert claimer.told(after=NO_CAPACITY_S / 2) == NextPoll(POLL)


def test_a_wish_that_did_not_arrive_is_said_again_later():
    claimer = Claimer()
    claimer.until_idle()
    claimer.policy.enabling_failed(claimer.now)
    assert claimer.look() == NextPoll(POLL)
    assert claimer.look(after=RETRY_NOTIFY_AFTER_S).notify_request is NotifyRequest.ENABLE
