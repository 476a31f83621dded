"""Storing how runs ended: many at once, as soon as the previous flush is done."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID

from ..errors import Cancelled
from ..policy import GiveUp, RetryAfter
from ..services import leases, runs
from ..services.runs import Completed, Failed
from ..values import TaskError
from .chores import Chore
from .database import Database, explain, refused
from .live import Live, LiveRun
from .wakeup import Wakeup

if TYPE_CHECKING:
    from ..models import DurableTask

logger = logging.getLogger("sa_durable.worker")

LARGEST = 1000  # outcomes in one statement


@dataclass(frozen=True, slots=True)
class Released:
    """A claim given back: the task is ready again, its attempt not burnt."""

    task_id: UUID
    token: int


Outcome: TypeAlias = Completed | Failed | Released
Kind = TypeVar("Kind", Completed, Failed, Released)


class Flusher:
    """Takes outcomes from any thread and writes them, by queue and kind, in one statement each.

    An outcome waits while the database is away. One that PostgreSQL refuses doesn't hold up the others: its task
    fails with an error that can be stored. A crash before a flush re-runs at most what waited for it.
    """

    def __init__(self, database: Database, live: Live, *, ready: Wakeup, asleep: Wakeup) -> None:
        """`ready` is hinted when a task was put back that can be claimed, `asleep` when one has to be woken later."""
        self._database, self._live = database, live
        self._ready, self._asleep = ready, asleep
        self._waiting: deque[tuple[LiveRun, Outcome]] = deque()
        self._writing: list[tuple[LiveRun, Outcome]] = []
        self.chore = Chore("flusher", self._flush)

    def put(self, run: LiveRun, outcome: Outcome) -> None:
        run.settling = True
        self._waiting.append((run, outcome))
        self.chore.wakeup.set()

    @property
    def backlog(self) -> int:
        """How many outcomes are not stored yet. From any thread."""
        return len(self._waiting) + len(self._writing)

    def _flush(self) -> float | None:
        while self._writing or self._waiting:
            while self._waiting and len(self._writing) < LARGEST:
                self._writing.append(self._waiting[0])
                self._waiting.popleft()  # in this order, so that the backlog never looks shorter than it is
            self._write()
        return None

    def _write(self) -> None:
        """Write what is in `_writing`, and take out of it what was written: the rest is tried again."""
        groups: dict[tuple[type[DurableTask], type[Any]], list[tuple[LiveRun, Outcome]]] = {}
        for run, outcome in self._writing:
            groups.setdefault((run.model, type(outcome)), []).append((run, outcome))
        for (model, _), group in groups.items():
            reached = self._store(model, [outcome for _, outcome in group])
            self._report(model, [run for run, _ in group if run.claim.task_id not in reached])
            self._live.remove(run for run, _ in group)
            self._hint([outcome for _, outcome in group])
            written = {id(run) for run, _ in group}
            self._writing = [waiting for waiting in self._writing if id(waiting[0]) not in written]

    def _hint(self, written: list[Outcome]) -> None:
        delays = {
            outcome.verdict.delay
            for outcome in _all(written, Failed)
            if isinstance(outcome.verdict, RetryAfter)
        }
        if any(delays):
            self._asleep.set()
        if not all(delays):
            self._ready.set()

    def _store(self, model: type[DurableTask], outcomes: list[Outcome]) -> set[UUID]:
        try:
            with self._database.once() as session:
                match outcomes[0]:
                    case Completed():
                        return runs.complete_many(session, model, _all(outcomes, Completed))
                    case Failed():
                        return runs.fail_many(session, model, _all(outcomes, Failed))
                    case Released():
                        held = {outcome.task_id: outcome.token for outcome in outcomes}
                        return leases.release(session, model, held)
        except Exception as error:
            if not refused(error):
                raise
            if len(outcomes) > 1:  # one of them is to blame
                return set().union(*(self._store(model, [outcome]) for outcome in outcomes))
            return self._store_refused(model, outcomes[0], error)

    def _store_refused(self, model: type[DurableTask], outcome: Outcome, error: Exception) -> set[UUID]:
        logger.error("task %s: its outcome can't be stored (%s)", outcome.task_id, explain(error))
        instead = Failed(outcome.task_id, outcome.token, _UNSTORABLE, GiveUp())
        if isinstance(outcome, Completed):
            return self._store(model, [instead])
        if isinstance(outcome, Failed) and outcome.error is not _UNSTORABLE:
            return self._store(model, [Failed(outcome.task_id, outcome.token, _UNSTORABLE, outcome.verdict)])
        return {outcome.task_id}  # nothing can be: the lease runs out, and the sweep takes it

    def _report(self, model: type[DurableTask], lost: Sequence[LiveRun]) -> None:
        if not lost:
            return
        with self._database.once() as session:
            standing = leases.standing(session, model, {run.claim.task_id: run.claim.token for run in lost})
        for run in lost:
            if signal := standing[run.claim.task_id]:
                level = logging.INFO if isinstance(signal, Cancelled) else logging.WARNING
                logger.log(level, "%s (%s): the end of its run is not stored", signal, run.claim.name)


_UNSTORABLE = TaskError("InvalidResult", "PostgreSQL refused to store how this run ended")


def _all(outcomes: list[Outcome], kind: type[Kind]) -> list[Kind]:
    return [outcome for outcome in outcomes if isinstance(outcome, kind)]
