"""Where the ready tasks of a queue begin: what a claim need not look at again (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from math import inf
from time import monotonic

EVERYTHING = 1.0  # seconds; at the latest then a claim looks at everything again
LATE = 2.0  # seconds; tasks that were due, and committed, so much later than others are found at once


class Front:
    """What claims of one queue, under the same names, have seen: a claim begins behind it.

    While some transaction holds an old snapshot, all that has passed through stays in the ready index, before what is
    ready, and each claim steps over it. A claim that found less than it asked for has taken all that was ready; one that
    found as much has taken all that comes before its last. What is there all the same (somebody had it locked, it was
    given back, its transaction took longer than LATE, its time had long come when it was spawned) is found by a look
    at everything: by one a second, and by each claim that would find nothing.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._looked = -inf  # when the last look at everything was sent
        self._taken: float | None = None  # what was ready before that is taken
        self._drained = False  # so it was seen; or else only what comes before the last that was taken

    def now(self) -> float:
        return self._clock()

    def within(self) -> timedelta | None:
        """The next claim need only look at what has become ready within this time. None: at everything."""
        now = self._clock()
        if self._taken is None or now - self._looked >= EVERYTHING:
            return None
        return timedelta(seconds=now - self._taken + LATE)

    def claimed(
        self, sent: float, within: timedelta | None, *, limit: int, found: Sequence[tuple[int, timedelta]]
    ) -> None:
        """A claim of up to `limit` tasks, sent then, found these, in order: their priorities, and since when each had been
        ready."""
        everything = within is None
        if everything:
            self._looked = sent
        if not found:
            self._taken = None
        elif everything or not self._drained:
            self._drained = len(found) < limit
            (first, _), (last, waited) = found[0], found[-1]
            if self._drained:
                self._taken = sent if everything else None
            else:  # but of what is less urgent, nothing is known
                self._taken = sent - waited.total_seconds() if first == last else None
        elif len(found) < limit:
            self._taken = sent
