"""Deleting what is over, from queues that have a retention."""

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

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")

INTERVAL_S = 60.0
REST_FACTOR = 100  # times what a look took: passing over very many that must stay takes time
BATCH_SIZE = 500  # rows of a kind in one transaction


class Cleaner:
    """Every `INTERVAL` seconds asks which queues have a retention, which is one statement, and cleans those up: in
    batches without a pause. Not at the start: what has waited for a worker runs first."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database, self._registry = database, registry
        self._due = monotonic() + INTERVAL_S
        self.thread = PeriodicThread("cleaner", self._run_once)

    def _run_once(self) -> float:
        if (left := self._due - monotonic()) > 0:
            return left
        began = monotonic()
        with self._database.autocommit() as session:
            retentions = cleanup.retentions(session, self._registry.queues)
        more = [self._clean(model, retention) for model, retention in retentions.items()]
        if any(more):
            return 0
        now = monotonic()
        pause = max(INTERVAL_S, REST_FACTOR * (now - began))
        self._due = now + pause
        return pause

    def _clean(self, model: type[DurableTask], retention: timedelta) -> bool:
        """True: there may be more."""
        try:
            with self._database.transaction() as session:
                cleaned = cleanup.clean_up(session, model, older_than=retention, limit=BATCH_SIZE)
        except Exception as error:  # whatever it is, it must not keep the other queues from being cleaned up
            if is_transient(error):
                raise
            said = f"queue {model.__queue__} (retention {retention}) can't be cleaned up: {describe_for_log(error)}"
            logger.error(said)  # noqa: TRY400 - a traceback may quote rows
            return False
        if cleaned.tasks or cleaned.events:
            logger.info(
                "queue %s: cleaned up %d tasks, %d events", model.__queue__, cleaned.tasks, cleaned.events
            )
        return BATCH_SIZE in (cleaned.tasks, cleaned.events)
