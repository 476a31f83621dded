"""Ending what nobody attends to: runs whose workers are gone, tasks whose time is over."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from ...services import maintenance, polling
from ...services.polling import Ended
from ..connections.database import Database
from ..runs.registry import Registry
from ..threads.periodic import PeriodicThread
from ..threads.wakeup import Wakeup

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")

BATCH_SIZE = 100


class Sweeper:
    """Looks in all queues, in one statement, every `sweep_interval` and when the next task is overdue; sweeps expired leases
    and cancels what is overdue, in batches without a pause. `ready` is hinted when there is something to claim, `ended` when somebody may wait for an end."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        *,
        sweep_interval: timedelta,
        ready: Wakeup,
        ended: Wakeup,
    ) -> None:
        self._database, self._registry, self._ready, self._ended = database, registry, ready, ended
        self._interval = sweep_interval.total_seconds()
        self.thread = PeriodicThread("sweeper", self._run_once)

    def _run_once(self) -> float:
        with self._database.autocommit() as session:
            found = polling.ended(session, self._registry.queues)
        return min([self._sweep_queue(model, ended) for model, ended in found.items()])

    def _sweep_queue(self, model: type[DurableTask], ended: Ended) -> float:
        """Returns the seconds until there may be more to do in this queue."""
        while ended.expired and not self.thread.stopping and self._expire_batch(model):
            pass
        pause = self._interval
        if ended.next_overdue is not None:
            left = ended.next_overdue.total_seconds()
            pause = min(pause, max(0.001, left)) if left > 0 else self._cancel_overdue(model)
        return pause

    def _expire_batch(self, model: type[DurableTask]) -> bool:
        """True: there may be more."""
        with self._database.transaction() as session:
            swept = maintenance.sweep_expired(session, model, limit=BATCH_SIZE)
        for run in swept:
            what = "next attempt" if run.retried else "the task is over"
            logger.warning(
                "task %s: the lease of worker %s ran out in attempt %d: %s",
                run.task_id,
                run.worker,
                run.attempt,
                what,
            )
        if swept:
            self._ready.set()
            self._ended.set()
        return bool(swept)

    def _cancel_overdue(self, model: type[DurableTask]) -> float:
        """Returns the seconds until there may be more to do."""
        while True:
            with self._database.transaction() as session:
                overdue = maintenance.sweep_overdue(session, model, limit=BATCH_SIZE)
            for task_id in overdue.cancelled:
                logger.warning("task %s: its time is over, it is cancelled", task_id)
            if overdue.cancelled:
                self._ended.set()
            if not overdue.cancelled or self.thread.stopping:
                break
        if overdue.next_due is None:
            return self._interval
        return min(self._interval, max(0.001, overdue.next_due.total_seconds()))
