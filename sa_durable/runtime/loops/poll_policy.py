"""When a claimer looks again, and whether it wants to be notified. Pure: times and numbers in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

ASKED = timedelta(seconds=60)  # for how long notifications are asked for at a time
RENEW = 20.0  # seconds after which an idle worker asks again
AGAIN = 1.0  # seconds after which it does so because it missed one, or because asking failed
QUIET = (0.005, 0.005, 0.01)  # pauses after the last work; then a worker is idle
# While each look finds so many, it pauses for so long: small claims in quick succession would take the processor from
# those who spawn (0.71 of their speed with 8 committers on 2 cores and 5 ms, 0.80 with 30 ms)
MANY, STREAM = 4, 0.08
FULL = 0.05  # seconds without room after which notifications are of no use
BURST, WINDOW = 10, 0.1  # notifications within seconds: looking is cheaper than being notified


class Wish(Enum):
    """What to say to those who spawn."""

    NOTIFY = "notify"
    DONT = "don't"
    NOTHING_NEW = "nothing new"


@dataclass(frozen=True, slots=True)
class Next:
    """Look again after `pause` seconds at the latest."""

    pause: float
    wish: Wish = Wish.NOTHING_NEW


class Idling:
    """Who notifies pays for it: PostgreSQL commits one notifier after the other. So a worker asks for notifications once
    it has found nothing for 20 ms, in short pauses that grow, and then looks once more; and it calls them off when they
    come in bursts, or when it has no room for what they announce."""

    def __init__(self, poll_interval: float) -> None:
        self._poll = poll_interval
        self._asked: float | None = None  # when we last did; None: nobody notifies us
        self._not_before = 0.0
        self._pauses = 0  # since the last work
        self._many_before = self._streams = False  # the last look, and both of the last two, found many
        self._full_since: float | None = None
        self._connection = self._heard = 0
        self._window = (0.0, 0)  # when it began, and what had been heard by then

    def after_claims(self, now: float, *, found: int, room: bool, connection: int, heard: int) -> Next:
        """`found` tasks were claimed, and there is `room` for more; `connection`: the number of the one that
        notifications come by, 0: there is none; `heard`: how many ever came."""
        if connection != self._connection:
            self._connection, self._asked = connection, None
        missed = found > 0 and heard == self._heard
        burst = self._is_burst(now, heard)
        if found or not room:
            self._pauses = 0
        self._streams, self._many_before = found >= MANY and self._many_before, found >= MANY
        if room or self._asked is None:
            self._full_since = None
        if not connection:
            return Next(self._poll)
        if self._asked is None:
            return self._until_idle(now, room=room)
        if not room:
            return self._without_room(now, burst=burst)
        if burst:
            return self._call_off(QUIET[0])
        if now - self._asked >= (AGAIN if missed else RENEW):
            return self._ask(now)
        return Next(self._poll)

    def not_asked(self, now: float) -> None:
        """The wish to be notified didn't reach the database: again later."""
        self._asked, self._not_before = None, now + AGAIN

    def _until_idle(self, now: float, *, room: bool) -> Next:
        if not room or now < self._not_before:
            return Next(self._poll)
        if self._pauses < len(QUIET):
            self._pauses += 1
            return Next(min(self._poll, STREAM if self._streams else QUIET[self._pauses - 1]))
        return self._ask(now)

    def _without_room(self, now: float, *, burst: bool) -> Next:
        if self._full_since is None:
            self._full_since = now
        if burst or now - self._full_since >= FULL:
            return self._call_off(self._poll)
        return Next(min(self._poll, FULL))

    def _ask(self, now: float) -> Next:
        self._asked = now
        return Next(0, Wish.NOTIFY)  # what came before they knew is found by looking once more

    def _call_off(self, pause: float) -> Next:
        self._asked = None
        return Next(min(self._poll, pause), Wish.DONT)

    def _is_burst(self, now: float, heard: int) -> bool:
        self._heard = heard
        began, before = self._window
        windows = max(1.0, (now - began) / WINDOW)
        if windows > 1:
            self._window = (now, heard)
        return heard - before >= BURST * windows
