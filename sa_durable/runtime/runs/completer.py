"""Storing how runs ended: many at once, as soon as the previous flush is done."""

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

logger = logging.getLogger("sa_durable.worker")

BATCH_SIZE = 1000  # outcomes in one statement
LOCKED_RETRY_S = 0.02  # seconds until an outcome is tried again whose row somebody has locked


@dataclass(frozen=True, slots=True)
class ReleaseClaim:
    """A claim given back: the task is ready again, its attempt not burnt."""

    task_id: UUID
    token: int


Outcome: TypeAlias = Completed | Failed | ReleaseClaim
OutcomeT = TypeVar("OutcomeT", Completed, Failed, ReleaseClaim)


class Completer:
    """Takes outcomes from any thread and writes them, by queue and kind, in one statement each.

    An outcome waits while the database is away. One that PostgreSQL refuses doesn't hold up the others: its task
    fails with an error that can be stored. A crash before a flush re-runs at most what waited for it.
    """

    def __init__(self, database: Database, live: ActiveRuns, *, ready: Wakeup, asleep: Wakeup) -> None:
        """`ready` is hinted when a task was put back that can be claimed, `asleep` when one has to be woken later."""
        self._database, self._active = database, live
        self._ready, self._asleep = ready, asleep
        self._waiting: deque[tuple[ActiveRun, Outcome]] = deque()
        self._writing: list[tuple[ActiveRun, Outcome]] = []
        self.thread = PeriodicThread("completer", self._flush)

    def submit(self, run: ActiveRun, outcome: Outcome) -> None:
        run.finishing = True
        self._waiting.append((run, outcome))
        self.thread.wakeup.set()

    def release(self, run: ActiveRun) -> None:
        """Give back the claim of a run that never started. A run that was ended meanwhile is only forgotten."""
        if run.finishing:
            return
        if run.signal is None:
            self.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
        else:
            self._active.remove([run])

    @property
    def backlog(self) -> int:
        """How many outcomes are not stored yet. From any thread."""
        return len(self._waiting) + len(self._writing)

    def _flush(self) -> float | None:
        while self._writing or self._waiting:
            while self._waiting and len(self._writing) < BATCH_SIZE:
                self._writing.append(self._waiting[0])
                self._waiting.popleft()  # in this order, so that the backlog never looks shorter than it is
            if not self._write():
                return LOCKED_RETRY_S
        return None

    def _write(self) -> bool:
        """Write what is in `_writing`, and take out of it what was written: the rest is tried again. False: nothing was,
        somebody has the rest locked."""
        groups: dict[tuple[type[DurableTask], type[Any]], list[tuple[ActiveRun, Outcome]]] = {}
        for run, outcome in self._writing:
            groups.setdefault((run.model, type(outcome)), []).append((run, outcome))
        before = len(self._writing)
        for (model, kind), group in groups.items():
            reached = self._store(model, [outcome for _, outcome in group])
            locked = self._log_lost(model, [run for run, _ in group if run.claim.task_id not in reached])
            ended = [one for one in group if one[0].claim.task_id not in locked] if locked else group
            self._active.remove([run for run, _ in ended])
            if kind is Failed:
                self._wake_for([outcome for _, outcome in ended])
            elif kind is ReleaseClaim:
                self._ready.set()
            if len(ended) == len(self._writing):  # mostly: all are of one kind, and nobody has one locked
                self._writing = []
            else:
                written = {id(run) for run, _ in ended}
                self._writing = [waiting for waiting in self._writing if id(waiting[0]) not in written]
        return len(self._writing) < before

    def _wake_for(self, failed: list[Any]) -> None:
        delays = {outcome.verdict.delay for outcome in failed if isinstance(outcome.verdict, RetryAfter)}
        if any(delays):
            self._asleep.set()
        if not all(delays):
            self._ready.set()

    def _on_stored(self, stored: Stored) -> frozenset[UUID]:
        if stored.announced:  # somebody may wait for it
            self._asleep.set()
        return stored.reached

    def _store(self, model: type[DurableTask], outcomes: list[Outcome]) -> AbstractSet[UUID]:
        try:
            if isinstance(outcomes[0], Failed):
                return self._fail(model, _all(outcomes, Failed))
            with self._database.autocommit() as session:
                match outcomes[0]:
                    case Completed():
                        return self._on_stored(runs.complete_many(session, model, _all(outcomes, Completed)))
                    case _:
                        held = {outcome.task_id: outcome.token for outcome in outcomes}
                        return claims.release(session, model, held)
        except Exception as error:
            if not is_data_error(error):
                raise
            if len(outcomes) > 1:  # one of them is to blame
                return set().union(*(self._store(model, [outcome]) for outcome in outcomes))
            return self._store_refused(model, outcomes[0], error)

    def _fail(self, model: type[DurableTask], ended: list[Failed]) -> AbstractSet[UUID]:
        with self._database.transaction() as session, session.begin_nested() as batch:
            stored = runs.fail_many(session, model, ended)
            roots = cancellation.with_children(session, model, stored.final)
            if roots:
                batch.rollback()
        if not roots:
            return self._on_stored(stored)
        # A root that takes its descendants along waits for their locks: alone in its transaction.
        rest = [run for run in ended if run.task_id not in roots]
        reached = set(self._fail(model, rest)) if rest else set()
        for run in ended:
            if run.task_id in roots:
                with self._database.transaction() as session:
                    stored = runs.fail_root(session, model, run)
                reached |= self._on_stored(stored)
                self._asleep.set()  # its descendants may be waited for, too
        return reached

    def _store_refused(
        self, model: type[DurableTask], outcome: Outcome, error: Exception
    ) -> AbstractSet[UUID]:
        logger.error("task %s: its outcome can't be stored (%s)", outcome.task_id, describe_for_log(error))
        instead = Failed(outcome.task_id, outcome.token, _UNSTORABLE, GiveUp())
        if isinstance(outcome, Completed):
            return self._store(model, [instead])
        if isinstance(outcome, Failed) and outcome.error is not _UNSTORABLE:
            return self._store(model, [Failed(outcome.task_id, outcome.token, _UNSTORABLE, outcome.verdict)])
        return {outcome.task_id}  # nothing can be: the lease runs out, and the sweep takes it

    def _log_lost(self, model: type[DurableTask], lost: Sequence[ActiveRun]) -> set[UUID]:
        """Log what can't be stored any more. Returns what still can: somebody has the row locked."""
        if not lost:
            return set()
        with self._database.autocommit() as session:
            standing = claims.claim_status(
                session, model, {run.claim.task_id: run.claim.token for run in lost}
            )
        for run in lost:
            if isinstance(signal := standing[run.claim.task_id], Signal):
                level = logging.INFO if isinstance(signal, Cancelled) else logging.WARNING
                logger.log(level, "%s (%s): the end of its run is not stored", signal, run.claim.name)
        return {task_id for task_id, stands in standing.items() if stands is ClaimStatus.HELD}


_UNSTORABLE = TaskError("InvalidResult", "PostgreSQL refused to store how this run ended")


def _all(outcomes: list[Outcome], kind: type[OutcomeT]) -> list[OutcomeT]:
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]
