"""Background loop that deletes ended tasks and old events of queues that have a retention."""

from __future__ import annotations

import logging
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from ...services import cleanup
from ..connections.database import Database
from ..connections.errors import describe_for_log, is_transient
from ..runs.registry import Registry
from ..threads.periodic import PeriodicThread
from ..tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")


class Cleaner:
    """Clean up queues that have a retention, every `Tuning.cleanup_interval_s`.

    One statement finds the queues that have a retention. Each of them is cleaned up in batches of
    `Tuning.cleanup_batch_rows`, one transaction each, without a pause. The first cleanup comes an interval
    after the start: tasks that have waited for a worker run first.
    """

    def __init__(self, database: Database, registry: Registry, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._database, self._registry = database, registry
        self._interval_s, self._rest_factor = tuning.cleanup_interval_s, tuning.cleanup_rest_factor
        self._batch_rows = tuning.cleanup_batch_rows
        self._due_at = monotonic() + self._interval_s
        self.thread = PeriodicThread("cleaner", self._run_once)

    def _run_once(self) -> float:
        """Delete one batch of each queue, if a cleanup is due. Return the seconds until the next call."""
        if (remaining := self._due_at - monotonic()) > 0:
            return remaining
        began = monotonic()
        with self._database.autocommit() as session:
            retentions = cleanup.retentions(session, self._registry.queues)
        more = [self._clean_batch(model, retention) for model, retention in retentions.items()]
        if any(more):
            return 0
        now = monotonic()
        # Passing over very many rows that must stay takes time, even if nothing is deleted.
        pause_s = max(self._interval_s, self._rest_factor * (now - began))
        self._due_at = now + pause_s
        return pause_s

    def _clean_batch(self, model: type[DurableTask], retention: timedelta) -> bool:
        """Delete one batch of a queue. Return whether more may be left."""
        try:
            with self._database.transaction() as session:
                cleaned = cleanup.clean_up(session, model, older_than=retention, limit=self._batch_rows)
        except Exception as error:  # an error in one queue must not keep the others from being cleaned up
            if is_transient(error):
                raise
            message = "could not clean up: queue %s, retention %s (%s); other queues are cleaned up"
            reason = describe_for_log(error)
            logger.error(message, model.__queue__, retention, reason)  # noqa: TRY400 - a traceback may quote rows
            return False
        if cleaned.tasks or cleaned.events:
            logger.info(
                "cleaned up: queue %s, %d tasks and %d events deleted",
                model.__queue__,
                cleaned.tasks,
                cleaned.events,
            )
        return self._batch_rows in (cleaned.tasks, cleaned.events)
