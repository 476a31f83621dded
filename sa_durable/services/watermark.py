"""Which part of a queue's ready index a claim must read, decided from what earlier claims found.

A claim that reads only behind the watermark misses the few tasks that became ready with an old due time. A
full scan of the index, at least every `full_scan_interval_s`, finds them (docs/decisions/0010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from time import monotonic

FULL_SCAN_INTERVAL_S = 2.0
"""Longest time between two claims that scan the whole ready index."""

IDLE_AFTER_S = 0.1
"""A queue is idle if no claim has found tasks for so long. Then an empty claim is followed by a full scan."""

LATE_COMMIT_S = 2.0
"""Tasks whose transaction commits this much later than their due time are still behind the watermark."""

MAX_PRIORITIES = 8
"""Number of priorities whose watermarks are kept."""

LOWEST, HIGHEST = -(2**15), 2**15 - 1
"""The range of priorities."""

ALWAYS = timedelta(days=2_000_000)
"""Longer than any task was ready, and still an interval that PostgreSQL can subtract from now."""


@dataclass(frozen=True, slots=True)
class ScanRange:
    """One range of the ready index that a claim reads: some priorities, and of these the recent due times."""

    low: int
    """Lowest priority, included."""

    high: int
    """Highest priority, included."""

    within: timedelta
    """Due times from this long ago until now."""


class ClaimWatermark:
    """For each priority of a queue, up to which due time earlier claims have taken all ready tasks.

    While a transaction holds an old snapshot, VACUUM can't remove the index entries of tasks that were
    claimed. They stay before the ready tasks, and a full scan steps over all of them. A claim behind the
    watermark doesn't.

    A claim that found fewer tasks than its limit has taken all ready tasks. A claim that found as many has
    taken all tasks that come before its last one. Only a full scan finds a ready task before the watermark:
    its row was locked, its claim was released, its transaction took longer than `late_commit_s`, its queue
    was paused, or it was spawned with an old due time. Such a task is claimed at once if the queue is idle,
    else up to `full_scan_interval_s` later.

    Only the claimer's thread records claims. Other threads may read.

    Args:
        clock: Returns the time in seconds. The origin doesn't matter.
        full_scan_interval_s: Longest time between two claims that scan the whole ready index. 0: every claim
            does.
        late_commit_s: How long a spawning transaction may stay open until only a full scan finds its tasks.
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
        self._taken_until: dict[int, float] = {}
        """By priority: all tasks that were due before this time are taken."""
        self._last_full_scan = self._last_found = -inf
        """When the last claim that scanned the whole index, and the last that found tasks, was sent."""
        self._found_nothing = False
        """Whether a claim behind the watermark found nothing since the last full scan."""

    def now(self) -> float:
        """Return the time of the watermark's clock."""
        return self._clock()

    def scan_ranges(self) -> list[ScanRange] | None:
        """Return the ranges that the next claim must read. None: the whole index."""
        now = self._clock()
        if not self._taken_until or now - self._last_full_scan >= self._full_scan_interval_s:
            return None
        return list(self._ranges(now))

    def full_scan_due_in(self) -> float:
        """Return the seconds until the next full scan. inf: no claim has found nothing since the last one."""
        if not self._found_nothing:
            return inf
        return max(0.0, self._last_full_scan + self._full_scan_interval_s - self._clock())

    @property
    def idle(self) -> bool:
        """Whether a full scan may follow an empty claim. In a stream of tasks, too many would follow."""
        return self.seconds_since_found > IDLE_AFTER_S

    @property
    def seconds_since_found(self) -> float:
        """Seconds since the last claim that found tasks was sent. inf: none was."""
        return self._clock() - self._last_found

    def record_claim(
        self,
        sent: float,
        ranges: list[ScanRange] | None,
        *,
        limit: int,
        found: Sequence[tuple[int, timedelta]],
    ) -> None:
        """Record what a claim found.

        Args:
            sent: When the claim was sent, by the watermark's clock.
            ranges: What the claim read. None: the whole index.
            limit: How many tasks the claim asked for.
            found: Priority of each claimed task, and how long ago the task was due, in the order of claims.
        """
        if ranges is None:
            self._last_full_scan, self._found_nothing = sent, False
        if found:
            self._last_found = sent
        elif ranges is not None:
            self._found_nothing = True
        # Priorities of this claim go to the end: if there are too many, those of the oldest claims are
        # dropped.
        seen = {priority: sent for priority, _ in found}
        before = {priority: until for priority, until in self._taken_until.items() if priority not in seen}
        if len(found) < limit:
            taken_until = dict.fromkeys(before, sent) | seen
        else:  # the claim says nothing about tasks that come after its last one
            last, waited = found[-1]
            more_urgent = {priority: sent for priority in before if priority < last}
            less_urgent = {p: until for p, until in before.items() if p > last and ranges is not None}
            reached = min(sent, sent - waited.total_seconds())
            taken_until = less_urgent | more_urgent | seen | {last: reached}
        self._taken_until = dict(list(taken_until.items())[-MAX_PRIORITIES:])

    def _ranges(self, now: float) -> Iterator[ScanRange]:
        """Yield all priorities in order. Those without a watermark are read whole: few tasks passed there."""
        low = LOWEST
        for priority, until in sorted(self._taken_until.items()):
            if low < priority:
                yield ScanRange(low, priority - 1, ALWAYS)
            yield ScanRange(priority, priority, timedelta(seconds=now - until + self._late_commit_s))
            low = priority + 1
        if low <= HIGHEST:
            yield ScanRange(low, HIGHEST, ALWAYS)
