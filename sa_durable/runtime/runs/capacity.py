"""How many tasks a worker should hold. Pure arithmetic."""

from __future__ import annotations

PREFETCH_LIMIT = 300
PREFETCH_HORIZON_S = 0.025  # seconds of work that may wait in the process: several claims' round trips
_WEIGHT = 0.05


class Capacity:
    """Room for claims: free slots, and what is fetched ahead of them.

    Without a fixed `prefetch` it follows the pace of the runs: as many tasks as the slots get through in 25 ms. Runs
    of a second fetch nothing ahead (others may be idle), runs of no time at all up to 300.

    One thread takes; those who start and give back have the lock of the intake.
    """

    __slots__ = ("_ended", "_fixed", "_mean", "_taken", "concurrency", "queues_drained", "running")

    def __init__(self, concurrency: int, prefetch: int | None) -> None:
        self.concurrency, self._fixed = concurrency, prefetch
        self._mean = PREFETCH_HORIZON_S * concurrency  # of the seconds that a run takes
        self._taken = self._ended = self.running = 0
        self.queues_drained = False
        """Whether the last claims found less than they asked for. Only the claimer sets it."""

    @property
    def adaptive(self) -> bool:
        return self._fixed is None

    @property
    def prefetch(self) -> int:
        if self._fixed is not None:
            return self._fixed
        return min(PREFETCH_LIMIT, int(self.concurrency * PREFETCH_HORIZON_S / max(self._mean, 1e-6)))

    @property
    def held(self) -> int:
        return self._taken - self._ended

    @property
    def available(self) -> int:
        """How many tasks to claim now: nothing while enough are waiting, so that claims are batches."""
        waiting = self.held - self.running
        prefetch = self.prefetch
        if self.running + waiting >= self.concurrency and waiting > prefetch // 2:
            return 0
        return max(0, self.concurrency + prefetch - self.held)

    @property
    def claimable(self) -> bool:
        """Whether a claim may find tasks now: there is capacity, and the queues were not empty at the last claim."""
        return not self.queues_drained and self.available > 0

    def reserve(self, number: int) -> None:
        self._taken += number

    def start(self) -> None:
        self.running += 1

    def release(self, seconds: float | None = None) -> None:
        """One is over; `seconds` it ran, None: it never started."""
        self._ended += 1
        if seconds is not None:
            self.running -= 1
            self._mean += (seconds - self._mean) * _WEIGHT

    def release_stale(self, seconds: float) -> None:
        """What was fetched ahead waited for `seconds`: the runs are slower than they seemed."""
        self._mean = max(self._mean, seconds)
