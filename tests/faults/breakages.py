"""Variants of the library that lack one protection each. A process that is told to applies one; the package has none.

Each must be found by the checker in the run that finds nothing without it: that is the proof that it can fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Table, and_, func, text
from sqlalchemy.orm import Session

from sa_durable.models.predicates import RUNNING
from sa_durable.runtime.context import transaction_record
from sa_durable.runtime.loops import heartbeat, sweeper
from sa_durable.runtime.threads.periodic import PeriodicThread
from sa_durable.services import checkpoints, maintenance, runs
from sa_durable.statements import claims as claim_stmt
from sa_durable.statements import fencing
from sa_durable.statements import spawn as spawn_stmt

COMMIT = 0.02  # seconds that a COMMIT takes on a busy disk; here nothing waits for one
BETWEEN = 0.02  # seconds from one transaction to the next, as on a busy machine


def without_token() -> None:
    """Whoever runs a task may write for it, whichever claim is the current one."""

    def is_held(tasks: Any, task_id: Any, token: Any) -> Any:
        prefix = "" if isinstance(tasks, Table) else f"{tasks.name}."
        any_token = tasks.c.token == func.coalesce(tasks.c.token, token)  # keeps the parameter
        return and_(tasks.c.id == task_id, any_token, text(prefix + RUNNING))

    fencing.is_held = is_held


def sweep_without_recheck() -> None:
    """Who has let a lease expire is read in one transaction, and believed in the next."""

    def _sweep(self: Any, model: Any) -> bool:
        with self._database.transaction() as session:
            overdue = session.execute(claim_stmt.expired(model), {"limit": 100}).all()
        ended = [
            runs.Failed(row.id, row.token, maintenance._error(row), maintenance._expiry_verdict(row))
            for row in overdue
        ]
        if ended:
            time.sleep(BETWEEN)
            with self._database.transaction() as session:
                runs.fail_many(session, model, ended)
            self._tasks_ready.set()
        return False

    sweeper.Sweeper._expire_batch = _sweep


def insert_without_conflict_clause() -> None:
    spawn_stmt.unless_held = lambda statement, _table: statement


def checkpoint_outside() -> None:
    """A step's record commits in a transaction of its own, just before the rows that it is about."""

    def record(self: Any, session: Session, value: Any) -> transaction_record.RecordedStep:
        text_ = self._step.encode(self._run, value)
        with Session(session.get_bind(self._run.model)) as other, other.begin():
            claim = self._run.claim
            saved = checkpoints.save_first(other, self._run.model, claim, self._step.key, text_)
        time.sleep(COMMIT)
        return transaction_record.RecordedStep(saved)

    transaction_record.StepRecord.record = record


class _OnLoop(PeriodicThread):
    """A chore that takes its turn on the event loop."""

    def start(self) -> None:
        self._again(asyncio.get_running_loop())

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.stopping:
            loop.call_later(self._work() or 0, self._again, loop)


def heartbeat_on_loop() -> None:
    heartbeat.PeriodicThread = _OnLoop


BREAKAGES: dict[str, Callable[[], None]] = {
    "token check off": without_token,
    "sweep without re-check": sweep_without_recheck,
    "insert without conflict clause": insert_without_conflict_clause,
    "checkpoint outside the transaction": checkpoint_outside,
    "heartbeat on the event loop": heartbeat_on_loop,
}


def apply(name: str | None) -> None:
    if name is not None:
        BREAKAGES[name]()
