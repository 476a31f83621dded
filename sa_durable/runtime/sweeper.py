"""What time does to queues: sleepers wake, and leases of lost workers end. On timers, a bounded number at a time."""

from __future__ import annotations

import logging
from datetime import timedelta
from time import monotonic

from ..services import maintenance
from .chores import Chore
from .database import Database
from .registry import Registry
from .wakeup import Wakeup

logger = logging.getLogger("sa_durable.worker")

PROMOTE_LIMIT = 500
SWEEP_LIMIT = 100


class Sweeper:
    """Wakes due sleepers when the earliest is due, at the latest after `poll_interval`, and sweeps expired leases
    every `sweep_interval`; in full batches without a pause. `ready` is hinted when there
    is something to claim; a hint on `asleep` says that there may be a new sleeper."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        *,
        poll_interval: timedelta,
        sweep_interval: timedelta,
        ready: Wakeup,
        asleep: Wakeup,
    ) -> None:
        self._database, self._registry, self._ready = database, registry, ready
        self._poll, self._interval = poll_interval.total_seconds(), sweep_interval.total_seconds()
        self._next_sweep = 0.0
        self.chore = Chore("sweeper", self._work, wakeup=asleep)

    def _work(self) -> float:
        pause = self._promote()
        if monotonic() >= self._next_sweep:
            if self._sweep():
                return 0
            self._next_sweep = monotonic() + self._interval
        return min(pause, max(0.001, self._next_sweep - monotonic()))

    def _promote(self) -> float:
        pause = self._poll
        for model in self._registry.queues:
            with self._database.once() as session:
                promoted = maintenance.promote(session, model, limit=PROMOTE_LIMIT)
            if promoted.woken:
                self._ready.set()
            if promoted.woken == PROMOTE_LIMIT:
                pause = 0
            elif promoted.next_due is not None:
                # A millisecond more than nothing: rounding must not make this a busy loop.
                pause = min(pause, max(0.001, promoted.next_due.total_seconds()))
        return pause

    def _sweep(self) -> bool:
        """True: there may be more."""
        more = False
        for model in self._registry.queues:
            with self._database.transaction() as session:
                swept = maintenance.sweep_expired(session, model, limit=SWEEP_LIMIT)
            for run in swept:
                what = "next attempt" if run.retried else "no attempts left, the task has failed"
                logger.warning(
                    "task %s: the lease of worker %s ran out in attempt %d: %s",
                    run.task_id,
                    run.worker,
                    run.attempt,
                    what,
                )
            if swept:
                self._ready.set()
            more = more or len(swept) == SWEEP_LIMIT
        return more
