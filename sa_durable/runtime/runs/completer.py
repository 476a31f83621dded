"""Store the outcomes of runs, in batches, in a thread of its own."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID

from ...errors import Cancelled, Signal
from ...policy import GiveUp, RetryAfter
from ...services import cancellation, claims, runs
from ...services.claims import ClaimStatus
from ...services.runs import Completed, Failed, Stored
from ...values import TaskError
from ..connections.database import Database
from ..connections.errors import describe_for_log, is_data_error
from ..threads.periodic import PeriodicThread
from ..threads.wakeup import Wakeup
from .active import ActiveRun, ActiveRuns

if TYPE_CHECKING:
    from ...models import DurableTask

Model = type["DurableTask"]
logger = logging.getLogger("sa_durable.worker")

BATCH_SIZE = 1000
"""Largest number of outcomes in one statement."""

LOCKED_RETRY_S = 0.02
"""Time until outcomes are tried again whose rows another transaction has locked."""

_UNSTORABLE = TaskError("InvalidResult", "PostgreSQL refused to store the outcome of this run")
"""Stored in place of an outcome that PostgreSQL refuses."""


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """The outcome of a run that is not finished here: the task is ready again, and no attempt is consumed."""

    task_id: UUID
    token: int


Outcome: TypeAlias = Completed | Failed | ReleaseClaim
OutcomeT = TypeVar("OutcomeT", Completed, Failed, ReleaseClaim)


class Completer:
    """Store outcomes, in one statement for all of the same kind and queue.

    While one batch is written, the next one collects. Outcomes wait while the database is unavailable. If
    PostgreSQL refuses one of a batch, the others are still stored, and its task fails with an error
    that can be stored. If the process dies, the outcomes that wait are lost, and their tasks run again.

    Thread safety: any thread may call `submit`, `release` and `backlog`.

    Args:
        database: The connections to use.
        active: The worker's runs. A run is removed when its outcome is stored or its claim is lost.
        tasks_ready: Set when a task became ready: its claim was released, or it is retried at once.
        sleepers_changed: Set when a task must be woken later, or when an ended task may be awaited.
    """

    def __init__(
        self, database: Database, active: ActiveRuns, *, tasks_ready: Wakeup, sleepers_changed: Wakeup
    ) -> None:
        self._database, self._active = database, active
        self._tasks_ready, self._sleepers_changed = tasks_ready, sleepers_changed
        self._waiting: deque[tuple[ActiveRun, Outcome]] = deque()
        """Submitted outcomes. Any thread appends; only the completer's thread takes them out."""
        self._writing: list[tuple[ActiveRun, Outcome]] = []
        """The batch that is being written. Only the completer's thread changes it."""
        self.thread = PeriodicThread("completer", self._flush)

    def submit(self, run: ActiveRun, outcome: Outcome) -> None:
        """Store the outcome of a run soon."""
        run.finishing = True
        self._waiting.append((run, outcome))
        self.thread.wakeup.set()

    def release(self, run: ActiveRun) -> None:
        """Release the claim of a run that never started. If a signal has ended the run, only remove it."""
        if run.finishing:
            return
        if run.signal is None:
            self.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
        else:
            self._active.remove([run])

    @property
    def backlog(self) -> int:
        """Number of outcomes that are not stored yet."""
        return len(self._waiting) + len(self._writing)

    def _flush(self) -> float | None:
        """Write all outcomes. Return `LOCKED_RETRY_S` if only those of locked rows are left."""
        while self._writing or self._waiting:
            while self._waiting and len(self._writing) < BATCH_SIZE:
                # Append before removing, so that `backlog` is never too small.
                self._writing.append(self._waiting[0])
                self._waiting.popleft()
            if not self._write_batch():
                return LOCKED_RETRY_S
        return None

    def _write_batch(self) -> bool:
        """Write the outcomes in `_writing`, and remove those that are stored or can't be stored any more.

        Returns:
            Whether any was removed. False: other transactions have all the rows locked.
        """
        groups: dict[tuple[Model, type[Any]], list[tuple[ActiveRun, Outcome]]] = {}
        for run, outcome in self._writing:
            groups.setdefault((run.model, type(outcome)), []).append((run, outcome))
        before = len(self._writing)
        for (model, kind), group in groups.items():
            reached = self._store(model, [outcome for _, outcome in group])
            missed = [run for run, _ in group if run.claim.task_id not in reached]
            locked = self._log_lost(model, missed)
            ended = [pair for pair in group if pair[0].claim.task_id not in locked] if locked else group
            self._active.remove([run for run, _ in ended])
            if kind is Failed:
                self._wake_after_failures([outcome for _, outcome in ended])
            elif kind is ReleaseClaim:
                self._tasks_ready.set()
            if len(ended) == len(self._writing):  # the usual case: one group, no row locked
                self._writing = []
            else:
                written = {id(run) for run, _ in ended}
                self._writing = [pair for pair in self._writing if id(pair[0]) not in written]
        return len(self._writing) < before

    def _wake_after_failures(self, failed: list[Any]) -> None:
        delays = {outcome.verdict.delay for outcome in failed if isinstance(outcome.verdict, RetryAfter)}
        if any(delays):
            self._sleepers_changed.set()
        if not all(delays):
            self._tasks_ready.set()

    def _store(self, model: Model, outcomes: list[Outcome]) -> AbstractSet[UUID]:
        """Store outcomes of one kind. Return the tasks whose row was written."""
        try:
            if isinstance(outcomes[0], Failed):
                return self._fail(model, _all(outcomes, Failed))
            with self._database.autocommit() as session:
                match outcomes[0]:
                    case Completed():
                        return self._on_stored(runs.complete_many(session, model, _all(outcomes, Completed)))
                    case _:
                        tokens = {outcome.task_id: outcome.token for outcome in outcomes}
                        return claims.release(session, model, tokens)
        except Exception as error:
            if not is_data_error(error):
                raise
            if len(outcomes) > 1:  # find the refused one
                return set().union(*(self._store(model, [outcome]) for outcome in outcomes))
            return self._store_refused(model, outcomes[0], error)

    def _fail(self, model: Model, failed: list[Failed]) -> AbstractSet[UUID]:
        with self._database.transaction() as session, session.begin_nested() as batch:
            stored = runs.fail_many(session, model, failed)
            roots = cancellation.with_children(session, model, stored.final)
            if roots:
                batch.rollback()
        if not roots:
            return self._on_stored(stored)
        # The failure of a root cancels its descendants, and waits for their locks. Each root has a
        # transaction of its own, so that nothing else is locked during this wait.
        rest = [outcome for outcome in failed if outcome.task_id not in roots]
        reached = set(self._fail(model, rest)) if rest else set()
        for outcome in failed:
            if outcome.task_id in roots:
                with self._database.transaction() as session:
                    stored = runs.fail_root(session, model, outcome)
                reached |= self._on_stored(stored)
                self._sleepers_changed.set()  # other tasks may wait for its descendants
        return reached

    def _on_stored(self, stored: Stored) -> frozenset[UUID]:
        if stored.announced:  # another task may wait for one of these
            self._sleepers_changed.set()
        return stored.reached

    def _store_refused(self, model: Model, outcome: Outcome, error: Exception) -> AbstractSet[UUID]:
        """Store a failure in place of an outcome that PostgreSQL refused, unless that was refused, too."""
        substitute: Failed | None
        match outcome:
            case Completed():
                substitute = Failed(outcome.task_id, outcome.token, _UNSTORABLE, GiveUp())
            case Failed() if outcome.error is not _UNSTORABLE:
                substitute = Failed(outcome.task_id, outcome.token, _UNSTORABLE, outcome.verdict)
            case _:
                substitute = None
        then = "a failure is stored instead" if substitute else "nothing is stored, and its lease will expire"
        logger.error(
            "outcome refused by PostgreSQL: task %s (%s); %s", outcome.task_id, describe_for_log(error), then
        )
        return self._store(model, [substitute]) if substitute else {outcome.task_id}

    def _log_lost(self, model: Model, missed: Sequence[ActiveRun]) -> set[UUID]:
        """Log the runs whose outcome can't be stored any more, because their claim is lost or cancelled.

        Returns:
            The tasks whose outcome can still be stored: another transaction has their row locked.
        """
        if not missed:
            return set()
        tokens = {run.claim.task_id: run.claim.token for run in missed}
        with self._database.autocommit() as session:
            statuses = claims.claim_status(session, model, tokens)
        for run in missed:
            if isinstance(signal := statuses[run.claim.task_id], Signal):
                level = logging.INFO if isinstance(signal, Cancelled) else logging.WARNING
                logger.log(
                    level,
                    "outcome not stored: %s, attempt %d (%s: %s); it is discarded",
                    run.claim.name,
                    run.claim.attempt,
                    type(signal).__name__,
                    signal,
                )
        return {task_id for task_id, status in statuses.items() if status is ClaimStatus.HELD}


def _all(outcomes: list[Outcome], kind: type[OutcomeT]) -> list[OutcomeT]:
    """Return `outcomes`, which are all of one kind, with the type of this kind."""
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]
