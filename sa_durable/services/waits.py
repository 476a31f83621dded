"""Waiting: for an event, and for tasks to end.

Two transactions of the library's own, `look` and `sleep` (statements.waits says why that loses nothing). What was
waited for is saved as the step's checkpoint. Both raise Cancelled or LeaseLost, as every write of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..codec import dumps
from ..statements import events as event_stmt
from ..statements import waits as stmt
from ..statements.arrays import texts, uuids
from ..statements.events import TASK_EVENT
from ..statements.notifications import set_short_lock_timeout
from ..values import Claim, Json, TaskState
from . import checkpoints, claims, events
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]

TIMED_OUT = "timed_out"  # the key of a checkpoint that says so


@dataclass(frozen=True, slots=True)
class Arrived:
    """What was waited for is there; `value` is its checkpoint."""

    value: Json


class Registered:
    """The waits are there: `sleep` is next."""


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """What is still to come: names of events, and the queue of each. `first`: what has to be done before the run can wait for
    them, each in a transaction of its own. `partly`: more was waited for, and that is there."""

    names: Sequence[str]
    queues: Sequence[str]
    first: Sequence[Callable[[Session], object]] = ()
    partly: bool = False


class Awaited(Protocol):
    """Something that a run can wait for."""

    def find(self, session: Session) -> str | Prerequisites:
        """What to save of it, as JSON text; or what it still lacks."""


@dataclass(frozen=True, slots=True)
class AwaitedEvent:
    """An event of a queue. Saved as `{"payload": ...}`."""

    model: Model
    name: str

    def find(self, session: Session) -> str | Prerequisites:
        row = execute(session, event_stmt.find(self.model), {"name": self.name}).first()
        if row is not None and row.settled:
            return f'{{"payload": {row.payload}}}'
        settle = partial(events.settle_one, model=self.model, name=self.name)
        return Prerequisites([self.name], [self.model.__queue__], [] if row is None else [settle])


@dataclass(frozen=True, slots=True)
class AwaitedTasks:
    """The ends of tasks, all of them. Saved as a list of `{"name": ..., "state": ..., "result": ..., "error": ...}`, in
    order; what is gone has no state."""

    tasks: Sequence[tuple[Model, UUID]]

    def find(self, session: Session) -> str | Prerequisites:
        rows: dict[tuple[Model, UUID], Any] = {}
        for model in dict.fromkeys(model for model, _ in self.tasks):
            ids = uuids(task_id for queue, task_id in self.tasks if queue is model)
            found = execute(session, stmt.outcomes(model), {"ids": ids}, model=model)
            rows |= {(model, row.id): row for row in found}
        active = {key: row for key, row in rows.items() if not TaskState(row.state).terminal}
        if active:
            silent = [key for key, row in active.items() if not (row.awaited or row.parent_id)]
            return Prerequisites(
                [f"{TASK_EVENT}{task_id}" for _, task_id in active],
                [model.__queue__ for model, _ in active],
                [partial(announce, model=model, task_id=task_id) for model, task_id in silent],
                partly=len(active) < len(set(self.tasks)),
            )
        ended = ", ".join(_outcome_json(rows.get(key)) for key in self.tasks)
        return f"[{ended}]"


def _outcome_json(row: Any) -> str:
    if row is None:
        return '{"state": null}'
    name = dumps(row.name)
    return f'{{"name": {name}, "state": "{row.state}", "result": {row.result or "null"}, "error": {row.error or "null"}}}'


def find_or_register(
    session: Session, model: Model, claim: Claim, step: str, what: Awaited, *, timeout: timedelta | None
) -> Arrived | Registered | Prerequisites:
    """Take `what` if it is there, or if its time is over; else register the waits for it. Missing: first things first,
    and look again.

    A wait that is there keeps its end, so a timeout counts from the first time.
    """
    found = what.find(session)
    if isinstance(found, str):
        return _arrived(session, model, claim, step, found)
    if found.first:
        return found
    parameters = {
        "task_id": claim.task_id,
        "held_token": claim.token,
        "step": step,
        "names": texts(found.names),
        "queues": texts(found.queues),
        "timeout": timeout,
    }
    waits = execute(session, stmt.register(model), parameters).one()
    if not waits.held:
        claims.check(session, model, claim.task_id, claim.token)
    if waits.over:
        return _arrived(session, model, claim, step, f'{{"{TIMED_OUT}": true}}')
    return Registered()


def sleep(
    session: Session, model: Model, claim: Claim, step: str, what: Awaited
) -> Arrived | Prerequisites | None:
    """Look a last time, and put the run to sleep: until it is woken, or the first of its waits' times is over. None: it
    sleeps. Missing: `look` again. After the waits are committed; those for what is there are over."""
    found = what.find(session)
    if isinstance(found, str):
        return _arrived(session, model, claim, step, found)
    if found.first:
        return found
    parameters = {"task_id": claim.task_id, "held_token": claim.token}
    if found.partly:
        # What ended after the first look, and was settled before the waits were committed, comes no more.
        rest = {**parameters, "step": step, "names": texts(found.names)}
        if not execute(session, stmt.narrow(model), rest).scalar():
            claims.check(session, model, claim.task_id, claim.token)
            return found
    if execute(session, stmt.sleep(model), parameters).first() is None:
        claims.check(session, model, claim.task_id, claim.token)
    return None


def _arrived(session: Session, model: Model, claim: Claim, step: str, text: str) -> Arrived:
    value = checkpoints.save(session, model, claim, step, text)  # first: locks go from tasks to waits
    execute(session, stmt.forget(model), {"id": claim.task_id, "step": step})
    return Arrived(value)


def announce(session: Session, model: Model, task_id: UUID) -> bool:
    """Have the end of a task announced, to somebody who is not its parent. False: it has ended, or is gone."""
    return execute(session, stmt.mark_awaited(model), {"task_id": task_id}, model=model).first() is not None


def await_end(session: Session, model: Model, task_id: UUID) -> bool:
    """As `announce`, in a new session, at READ COMMITTED, and without waiting for a lock. False: somebody has locked the
    task, so that it isn't announced; nothing has happened then."""
    session.connection(
        bind_arguments={"mapper": model}, execution_options={"isolation_level": "READ COMMITTED"}
    )
    try:
        with session.begin_nested():
            execute(session, set_short_lock_timeout(), model=model)
            announce(session, model, task_id)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        return False
    return True


LOCK_NOT_AVAILABLE = "55P03"  # lock_not_available
