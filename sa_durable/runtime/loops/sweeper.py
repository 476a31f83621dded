"""Background loop that expires leases of dead workers and cancels tasks past their deadline."""

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

BATCH_ROWS = 100
"""Rows that one transaction changes."""

MIN_PAUSE_S = 0.001
"""Rounding must not make the sweeper a busy loop."""


class Sweeper:
    """Expire leases and enforce deadlines in all queues of a worker, whichever worker holds the tasks.

    Checks all queues with one statement, every `sweep_interval` and when the next deadline is due. Works in
    batches of `BATCH_ROWS`, one transaction each, until a queue has nothing left.

    Args:
        sweep_interval: Longest time between two checks.
        tasks_ready: Set when a task became claimable.
        sleepers_changed: Set when a task ended, because another task may be joining it.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        *,
        sweep_interval: timedelta,
        tasks_ready: Wakeup,
        sleepers_changed: Wakeup,
    ) -> None:
        self._database, self._registry = database, registry
        self._tasks_ready, self._sleepers_changed = tasks_ready, sleepers_changed
        self._interval_s = sweep_interval.total_seconds()
        self.thread = PeriodicThread("sweeper", self._run_once)

    def _run_once(self) -> float:
        """Check all queues. Return the seconds to wait before the next check."""
        with self._database.autocommit() as session:
            found = polling.ended(session, self._registry.queues)
        return min([self._sweep_queue(model, ended) for model, ended in found.items()])

    def _sweep_queue(self, model: type[DurableTask], ended: Ended) -> float:
        """Expire leases and enforce deadlines of one queue. Return the seconds until its next check."""
        while ended.expired and not self.thread.stopping and self._expire_batch(model):
            pass
        if ended.next_overdue is None:
            return self._interval_s
        remaining_s = ended.next_overdue.total_seconds()
        if remaining_s > 0:
            return min(self._interval_s, max(MIN_PAUSE_S, remaining_s))
        return self._cancel_overdue(model)

    def _expire_batch(self, model: type[DurableTask]) -> bool:
        """Expire one batch of leases. Return whether more may be left."""
        with self._database.transaction() as session:
            expired = maintenance.sweep_expired(session, model, limit=BATCH_ROWS)
        for run in expired:
            outcome = "will be retried" if run.retried else "has no attempts left"
            logger.warning(
                "lease expired: task %s, attempt %d, worker %s; the task %s",
                run.task_id,
                run.attempt,
                run.worker,
                outcome,
            )
        if expired:
            self._tasks_ready.set()
            self._sleepers_changed.set()
        return bool(expired)

    def _cancel_overdue(self, model: type[DurableTask]) -> float:
        """Cancel tasks past their deadline, batch by batch. Return the seconds until the next deadline."""
        while True:
            with self._database.transaction() as session:
                overdue = maintenance.sweep_overdue(session, model, limit=BATCH_ROWS)
            for task_id in overdue.cancelled:
                logger.warning("deadline exceeded: task %s cancelled", task_id)
            if overdue.cancelled:
                self._sleepers_changed.set()
            if not overdue.cancelled or self.thread.stopping:
                break
        if overdue.next_due is None:
            return self._interval_s
        return min(self._interval_s, max(MIN_PAUSE_S, overdue.next_due.total_seconds()))
