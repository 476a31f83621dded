"""Decide how many tasks a worker claims. Pure arithmetic, no I/O."""

from __future__ import annotations

PREFETCH_LIMIT = 300
PREFETCH_HORIZON_S = 0.025
"""How much work may wait in the process: as much as is done during a few round trips of a claim."""

_NEWEST_WEIGHT = 0.05
"""Weight of the newest run in the moving average of durations."""


class Capacity:
    """Free handler slots plus prefetched tasks of one worker.

    Without a fixed `prefetch`, the worker claims ahead what its slots finish in `PREFETCH_HORIZON_S`: up to
    300 tasks when handlers return at once, none when they take a second, so that slow tasks stay available to
    idle workers.

    Thread safety: only the claimer calls `reserve`. `start` and `release` need the dispatcher's lock.

    Args:
        concurrency: Number of handler slots.
        prefetch: Number of tasks to claim ahead. None: adapt it to the duration of runs.
    """

    __slots__ = ("_ended", "_fixed", "_mean_s", "_reserved", "concurrency", "queues_drained", "running")

    concurrency: int
    running: int
    """Number of slots in use."""
    queues_drained: bool
    """Whether the last claims found less than they asked for. Only the claimer sets it."""

    def __init__(self, concurrency: int, prefetch: int | None) -> None:
        self.concurrency, self._fixed = concurrency, prefetch
        self._mean_s = PREFETCH_HORIZON_S * concurrency
        """Moving average of the duration of a run. At first it gives a prefetch of 1."""
        self._reserved = self._ended = self.running = 0
        self.queues_drained = False

    @property
    def adaptive(self) -> bool:
        """Whether the prefetch follows the duration of runs."""
        return self._fixed is None

    @property
    def prefetch(self) -> int:
        """Number of tasks to claim ahead."""
        if self._fixed is not None:
            return self._fixed
        return min(PREFETCH_LIMIT, int(self.concurrency * PREFETCH_HORIZON_S / max(self._mean_s, 1e-6)))

    @property
    def held(self) -> int:
        """Number of claimed tasks that run or wait for a slot."""
        return self._reserved - self._ended

    @property
    def available(self) -> int:
        """Number of tasks to claim now. 0 while enough are waiting, so that claims stay batches."""
        waiting = self.held - self.running
        prefetch = self.prefetch
        if self.running + waiting >= self.concurrency and waiting > prefetch // 2:
            return 0
        return max(0, self.concurrency + prefetch - self.held)

    @property
    def claimable(self) -> bool:
        """Whether a claim may find tasks: there is capacity, and the last claim found enough tasks."""
        return not self.queues_drained and self.available > 0

    def reserve(self, number: int) -> None:
        """Count tasks that were claimed."""
        self._reserved += number

    def start(self) -> None:
        """Use a slot for a claimed task."""
        self.running += 1

    def release(self, seconds: float | None = None) -> None:
        """Stop counting a claimed task.

        Args:
            seconds: How long it used its slot. None: it never had one.
        """
        self._ended += 1
        if seconds is not None:
            self.running -= 1
            self._mean_s += (seconds - self._mean_s) * _NEWEST_WEIGHT

    def release_stale(self, seconds: float) -> None:
        """Shrink the prefetch, because a claimed task has waited `seconds` for a slot."""
        self._mean_s = max(self._mean_s, seconds)
