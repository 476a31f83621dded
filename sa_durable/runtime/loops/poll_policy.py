"""When a claimer looks again, and whether it wants to be notified. Pure: times and numbers in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

NOTIFY_PERIOD = timedelta(seconds=60)  # for how long notifications are asked for at a time
RENEW_AFTER_S = 20.0  # seconds after which an idle worker asks again
RETRY_ENABLE_AFTER_S = 1.0  # seconds after which it does so because it missed one, or because asking failed
AFTER_WORK_PAUSES_S = (0.005, 0.005, 0.01)  # pauses after the last work; then a worker is idle
# While each look finds so many, it pauses for so long: small claims in quick succession would take the processor from
# those who spawn (0.71 of their speed with 8 committers on 2 cores and 5 ms, 0.80 with 30 ms)
STREAM_MIN_FOUND, STREAM_PAUSE_S = 4, 0.08
NO_CAPACITY_S = 0.05  # seconds without room after which notifications are of no use
BURST_NOTIFICATIONS, BURST_WINDOW_S = (
    10,
    0.1,
)  # notifications within seconds: looking is cheaper than being notified


class NotifyRequest(Enum):
    """What to say to those who spawn."""

    ENABLE = "notify"
    DISABLE = "don't"
    UNCHANGED = "nothing new"


@dataclass(frozen=True, slots=True)
class NextPoll:
    """Look again after `pause` seconds at the latest."""

    pause: float
    notify_request: NotifyRequest = NotifyRequest.UNCHANGED


class PollPolicy:
    """Who notifies pays for it: PostgreSQL commits one notifier after the other. So a worker asks for notifications once
    it has found nothing for 20 ms, in short pauses that grow, and then looks once more; and it calls them off when they
    come in bursts, or when it has no room for what they announce."""

    def __init__(self, poll_interval: float) -> None:
        self._poll = poll_interval
        self._enabled_at: float | None = None  # when we last did; None: nobody notifies us
        self._not_before = 0.0
        self._pauses = 0  # since the last work
        self._many_before = self._streams = False  # the last look, and both of the last two, found many
        self._full_since: float | None = None
        self._connection = self._received = 0
        self._window = (0.0, 0)  # when it began, and what had been heard by then

    def after_claims(self, now: float, *, found: int, room: bool, connection: int, heard: int) -> NextPoll:
        """`found` tasks were claimed, and there is `room` for more; `connection`: the number of the one that
        notifications come by, 0: there is none; `heard`: how many ever came."""
        if connection != self._connection:
            self._connection, self._enabled_at = connection, None
        missed = found > 0 and heard == self._received
        burst = self._is_burst(now, heard)
        if found or not room:
            self._pauses = 0
        self._streams, self._many_before = (
            found >= STREAM_MIN_FOUND and self._many_before,
            found >= STREAM_MIN_FOUND,
        )
        if room or self._enabled_at is None:
            self._full_since = None
        if not connection:
            return NextPoll(self._poll)
        if self._enabled_at is None:
            return self._until_idle(now, room=room)
        if not room:
            return self._without_capacity(now, burst=burst)
        if burst:
            return self._disable(AFTER_WORK_PAUSES_S[0])
        if now - self._enabled_at >= (RETRY_ENABLE_AFTER_S if missed else RENEW_AFTER_S):
            return self._enable(now)
        return NextPoll(self._poll)

    def enabling_failed(self, now: float) -> None:
        """The wish to be notified didn't reach the database: again later."""
        self._enabled_at, self._not_before = None, now + RETRY_ENABLE_AFTER_S

    def _until_idle(self, now: float, *, room: bool) -> NextPoll:
        if not room or now < self._not_before:
            return NextPoll(self._poll)
        if self._pauses < len(AFTER_WORK_PAUSES_S):
            self._pauses += 1
            return NextPoll(
                min(self._poll, STREAM_PAUSE_S if self._streams else AFTER_WORK_PAUSES_S[self._pauses - 1])
            )
        return self._enable(now)

    def _without_capacity(self, now: float, *, burst: bool) -> NextPoll:
        if self._full_since is None:
            self._full_since = now
        if burst or now - self._full_since >= NO_CAPACITY_S:
            return self._disable(self._poll)
        return NextPoll(min(self._poll, NO_CAPACITY_S))

    def _enable(self, now: float) -> NextPoll:
        self._enabled_at = now
        return NextPoll(0, NotifyRequest.ENABLE)  # what came before they knew is found by looking once more

    def _disable(self, pause: float) -> NextPoll:
        self._enabled_at = None
        return NextPoll(min(self._poll, pause), NotifyRequest.DISABLE)

    def _is_burst(self, now: float, heard: int) -> bool:
        self._received = heard
        began, before = self._window
        windows = max(1.0, (now - began) / BURST_WINDOW_S)
        if windows > 1:
            self._window = (now, heard)
        return heard - before >= BURST_NOTIFICATIONS * windows
