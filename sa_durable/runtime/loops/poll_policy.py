"""Decide when a claimer polls again, and whether it wants notifications. Pure: no I/O and no clock.

NOTIFY is expensive for the sender: PostgreSQL serializes the commits of transactions that notify. So a worker
enables notifications only while it is idle, polls once more after that, and disables notifications that are
of no use.

| Constant                                | Value          | What it rests on                               |
|-----------------------------------------|----------------|------------------------------------------------|
| `AFTER_WORK_PAUSES_S`                   | 5, 5, 10 ms    | After 20 ms without tasks a worker is idle.    |
| `STREAM_MIN_FOUND`, `STREAM_PAUSE_S`    | 4 tasks, 80 ms | Frequent small claims slow spawners down: with |
|                                         |                | 8 committers on 2 cores they reach 0.71 of     |
|                                         |                | their speed at 5 ms, 0.80 at 30 ms.            |
| `NO_CAPACITY_S`                         | 50 ms          | Without capacity notifications are useless.    |
| `BURST_NOTIFICATIONS`, `BURST_WINDOW_S` | 10 in 100 ms   | Polling is cheaper than so many notifications. |
| `NOTIFY_PERIOD`                         | 60 s           | Senders stop by themselves if a worker dies.   |
| `Tuning.renew_notify_after_s`           | 20 s           | A third of `NOTIFY_PERIOD`: two more tries.    |
| `Tuning.retry_notify_after_s`           | 1 s            | Bounds the cost if another process disables.   |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

from ..tuning import DEFAULT_TUNING, Tuning

NOTIFY_PERIOD = timedelta(seconds=60)
AFTER_WORK_PAUSES_S = (0.005, 0.005, 0.01)
STREAM_MIN_FOUND, STREAM_PAUSE_S = 4, 0.08
NO_CAPACITY_S = 0.05
BURST_NOTIFICATIONS, BURST_WINDOW_S = 10, 0.1


class NotifyRequest(Enum):
    """What the claimer asks of the processes that spawn."""

    ENABLE = "enable notifications"
    DISABLE = "disable notifications"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class NextPoll:
    """When to poll again, and what to ask of the processes that spawn."""

    pause_s: float
    """Longest pause before the next poll."""

    notify_request: NotifyRequest = NotifyRequest.UNCHANGED


class PollPolicy:
    """The decision of one claimer after each of its polls.

    A worker enables notifications after `AFTER_WORK_PAUSES_S` without tasks. It disables them when they come
    in bursts, or when it had no capacity for `NO_CAPACITY_S`.

    Args:
        poll_interval_s: Longest pause between two polls.
    """

    def __init__(self, poll_interval_s: float, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._poll_interval_s, self._tuning = poll_interval_s, tuning
        self._enabled_at: float | None = None
        """When notifications were last enabled. None: they are disabled."""
        self._not_before = 0.0
        """Earliest time to enable notifications, after that has failed."""
        self._pauses = 0
        """Number of pauses since the last work."""
        self._found_many = self._streams = False
        """Whether the last poll, and both of the last two polls, found `STREAM_MIN_FOUND` tasks or more."""
        self._no_capacity_since: float | None = None
        self._connection = self._received = 0
        self._window = (0.0, 0)
        """Begin of the window for bursts, and the number of notifications before it."""

    def after_claims(
        self, now: float, *, found: int, available: bool, connection: int, received: int
    ) -> NextPoll:
        """Decide after the claims of one poll.

        Args:
            now: The time, of time.monotonic().
            found: Number of claimed tasks.
            available: Whether the worker has capacity for more.
            connection: Number of the connection that listens. 0: none does.
            received: Number of notifications that were ever received.
        """
        if connection != self._connection:
            self._connection, self._enabled_at = connection, None
        missed = found > 0 and received == self._received
        burst = self._is_burst(now, received)
        if found or not available:
            self._pauses = 0
        many = found >= STREAM_MIN_FOUND
        self._streams, self._found_many = many and self._found_many, many
        if available or self._enabled_at is None:
            self._no_capacity_since = None
        if not connection:
            return NextPoll(self._poll_interval_s)
        if self._enabled_at is None:
            return self._until_idle(now, available=available)
        if not available:
            return self._without_capacity(now, burst=burst)
        if burst:
            return self._disable(AFTER_WORK_PAUSES_S[0])
        after = self._tuning.retry_notify_after_s if missed else self._tuning.renew_notify_after_s
        if now - self._enabled_at >= after:
            return self._enable(now)
        return NextPoll(self._poll_interval_s)

    def enabling_failed(self, now: float) -> None:
        """Record that notifications could not be enabled: the policy tries again later."""
        self._enabled_at, self._not_before = None, now + self._tuning.retry_notify_after_s

    def _until_idle(self, now: float, *, available: bool) -> NextPoll:
        if not available or now < self._not_before:
            return NextPoll(self._poll_interval_s)
        if self._pauses < len(AFTER_WORK_PAUSES_S):
            self._pauses += 1
            pause_s = STREAM_PAUSE_S if self._streams else AFTER_WORK_PAUSES_S[self._pauses - 1]
            return NextPoll(min(self._poll_interval_s, pause_s))
        return self._enable(now)

    def _without_capacity(self, now: float, *, burst: bool) -> NextPoll:
        if self._no_capacity_since is None:
            self._no_capacity_since = now
        if burst or now - self._no_capacity_since >= NO_CAPACITY_S:
            return self._disable(self._poll_interval_s)
        return NextPoll(min(self._poll_interval_s, NO_CAPACITY_S))

    def _enable(self, now: float) -> NextPoll:
        self._enabled_at = now
        # One more poll, at once, finds tasks that were spawned before their spawners knew of this worker.
        return NextPoll(0, NotifyRequest.ENABLE)

    def _disable(self, pause_s: float) -> NextPoll:
        self._enabled_at = None
        return NextPoll(min(self._poll_interval_s, pause_s), NotifyRequest.DISABLE)

    def _is_burst(self, now: float, received: int) -> bool:
        self._received = received
        began, before = self._window
        windows = max(1.0, (now - began) / BURST_WINDOW_S)
        if windows > 1:
            self._window = (now, received)
        return received - before >= BURST_NOTIFICATIONS * windows
