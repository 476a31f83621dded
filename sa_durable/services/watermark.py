"""Where the ready tasks of a queue begin: what a claim need not look at again (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from time import monotonic

# Seconds, at the latest after which a claim looks at everything again; the other where that is dear. It is where so often
# in a row it took so many times what a claim took that found as much.
FULL_SCAN_INTERVAL_S, RARELY = 1.0, 5.0
OFTEN, DEAR = 5, 2.0
LATE_COMMIT_S = (
    2.0  # seconds; tasks that were due, and committed, so much later than others are found at once
)
PRIORITIES = 8  # that are kept apart
LOWEST, HIGHEST = -(2**15), 2**15 - 1
ALWAYS = timedelta(days=2_000_000)  # longer than anything was ready, and still a time that PostgreSQL has


@dataclass(frozen=True, slots=True)
class ScanRange:
    """Part of what a claim looks at: priorities `low` to `high`, of these what has become ready `within` this time."""

    low: int
    high: int
    within: timedelta


class ClaimWatermark:
    """What claims of one queue, under the same names, have seen: a claim begins behind it.

    While some transaction holds an old snapshot, all that has passed through stays in the ready index, before what is
    ready, and whoever looks at everything steps over it. A claim that found less than it asked for has taken all that was
    ready; one that found as much has taken all that comes before its last. What is there all the same (somebody had it
    locked, it was given back, its transaction took longer than `late_commit_s`, its time had long come when it was spawned) is found
    by a look at everything: by one a second, and by each claim that would find nothing. Where those have become dear, there is
    one in five seconds, and such a claim leaves it for that: `owed` says when.

    One thread claims; another may ask what is `due` and tell what it has `looked` at.
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        *,
        full_scan_interval_s: float = FULL_SCAN_INTERVAL_S,
        late_commit_s: float = LATE_COMMIT_S,
    ) -> None:
        self._clock = clock
        self._full_scan_interval_s, self._late_commit_s = full_scan_interval_s, late_commit_s
        self._taken: dict[int, float] = {}  # what was ready before that is taken, by priority
        self._looked = -inf  # when the last claim was sent that looked at everything,
        self._asked = -inf  # and when somebody else last did
        self._before: tuple[int, float] | None = None  # what the last claim behind the front found, and took
        self._dear = 0  # so many looks at everything in a row took much more than such a claim
        self._owes = False  # nothing was found behind the front, and that was left at that

    def now(self) -> float:
        return self._clock()

    def reach(self) -> list[ScanRange] | None:
        """All that the next claim need look at. None: everything."""
        now = self._clock()
        if not self._taken or now - self._looked >= self._pause:
            return None
        return list(self._reaches(now))

    def _reaches(self, now: float) -> Iterator[ScanRange]:
        """Of priorities that nobody has seen, everything: hardly anything passed through there."""
        low = LOWEST
        for priority, taken in sorted(self._taken.items()):
            if low < priority:
                yield ScanRange(low, priority - 1, ALWAYS)
            yield ScanRange(priority, priority, timedelta(seconds=now - taken + self._late_commit_s))
            low = priority + 1
        if low <= HIGHEST:
            yield ScanRange(low, HIGHEST, ALWAYS)

    def claimed(
        self,
        sent: float,
        reach: list[ScanRange] | None,
        *,
        limit: int,
        found: Sequence[tuple[int, timedelta]],
    ) -> None:
        """A claim of up to `limit` tasks, sent then, found these, in order: their priorities, and since when each had been
        ready."""
        took = self._clock() - sent
        if reach is not None:
            self._before = len(found), took
            self._owes = self._owes or not found
        else:
            self._looked, self._owes = sent, False
            if self._before is not None and len(found) <= self._before[0]:
                self._dear = self._dear + 1 if took > DEAR * self._before[1] else 0
        # Those that were found come last: they are kept.
        seen = {priority: sent for priority, _ in found}
        before = {priority: taken for priority, taken in self._taken.items() if priority not in seen}
        if len(found) < limit:
            taken = dict.fromkeys(before, sent) | seen
        else:  # of what is less urgent, nothing is known
            last, waited = found[-1]
            urgent = {priority: sent for priority in before if priority < last}
            others = {p: at for p, at in before.items() if p > last and reach is not None}
            taken = others | urgent | seen | {last: min(sent, sent - waited.total_seconds())}
        self._taken = dict(list(taken.items())[-PRIORITIES:])

    @property
    def _is_dear(self) -> bool:
        return self._dear >= OFTEN

    @property
    def _pause(self) -> float:
        return RARELY if self._is_dear else self._full_scan_interval_s

    def due(self) -> bool:
        """Whether everything may be looked at now."""
        return not self._is_dear or self._until_due() <= 0

    def owed(self) -> float:
        """Seconds until the look at everything that a claim left for later, which found nothing. inf: none is owed."""
        return max(0.0, self._until_due()) if self._owes else inf

    def _until_due(self) -> float:
        return max(self._looked, self._asked) + RARELY - self._clock()

    def looked(self, sent: float, *, ready: bool) -> None:
        """Somebody else has looked at everything, and has, or has not, found something `ready`."""
        self._asked = sent
        if ready and self._is_dear:
            self._looked = -inf
