"""Waits: for an event, and for tasks to end.

A run waits in two transactions, `find_or_register` and `sleep`. statements.waits says why no wake-up is lost
between them. The result is saved as the step's checkpoint. Both functions raise Cancelled or LeaseLost if the
claim was lost.
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

TIMED_OUT = "timed_out"  # the key of the checkpoint of a wait that timed out


@dataclass(frozen=True, slots=True)
class Arrived:
    """The wait has ended: its value is saved."""

    value: Json
    """The checkpoint."""


class Registered:
    """The waits are registered: commit, then call `sleep`."""


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """Events that are not there yet."""

    names: Sequence[str]
    """The names of the events."""
    queues: Sequence[str]
    """The queue of each event."""
    first: Sequence[Callable[[Session], object]] = ()
    """Calls to make before the run can wait, each in a transaction of its own."""
    partly: bool = False
    """Whether a part of what the run waits for is there."""


class Awaited(Protocol):
    """An event or tasks that a run can wait for."""

    def find(self, session: Session) -> str | Prerequisites:
        """Return the checkpoint to save, as JSON text; or Prerequisites if something is not there yet."""


@dataclass(frozen=True, slots=True)
class AwaitedEvent:
    """An event of a queue. Its checkpoint is `{"payload": ...}`."""

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
    """The ends of all of some tasks.

    Their checkpoint is a list of `{"name": ..., "state": ..., "result": ..., "error": ...}`, in order. A
    deleted task is saved with state null.
    """

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
    name, result, error = dumps(row.name), row.result or "null", row.error or "null"
    return f'{{"name": {name}, "state": "{row.state}", "result": {result}, "error": {error}}}'


def find_or_register(
    session: Session, model: Model, claim: Claim, step: str, what: Awaited, *, timeout: timedelta | None
) -> Arrived | Registered | Prerequisites:
    """Save what a run waits for, if it is there or the wait has timed out. Otherwise register the waits.

    A wait that is registered already keeps its deadline: a timeout counts from the first call.

    Returns:
        Arrived, or Registered; or Prerequisites: run `first`, each in a transaction of its own, then call
        this again.

    Raises:
        Cancelled, LeaseLost: The claim is no longer valid.
    """
    found = _find(session, model, claim, step, what)
    if isinstance(found, Arrived) or found.first:
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
    """Check once more, then put the run to sleep until it is woken or its first wait times out.

    Call it after the waits are committed: an event that is settled in between is found here, or wakes the
    run.

    Returns:
        None: the run sleeps. Arrived: it goes on. Prerequisites: call `find_or_register` again.

    Raises:
        Cancelled, LeaseLost: The claim is no longer valid.
    """
    found = _find(session, model, claim, step, what)
    if isinstance(found, Arrived) or found.first:
        return found
    parameters = {"task_id": claim.task_id, "held_token": claim.token}
    if found.partly:
        # Tasks that ended before the waits were committed will not wake the run: wait for the others only.
        rest = {**parameters, "step": step, "names": texts(found.names)}
        if not execute(session, stmt.narrow(model), rest).scalar():
            claims.check(session, model, claim.task_id, claim.token)
            return found
    if execute(session, stmt.sleep(model), parameters).first() is None:
        claims.check(session, model, claim.task_id, claim.token)
    return None


def _find(session: Session, model: Model, claim: Claim, step: str, what: Awaited) -> Arrived | Prerequisites:
    found = what.find(session)
    return _arrived(session, model, claim, step, found) if isinstance(found, str) else found


def _arrived(session: Session, model: Model, claim: Claim, step: str, text: str) -> Arrived:
    value = checkpoints.save(session, model, claim, step, text)  # first, as locks go from tasks to waits
    execute(session, stmt.forget(model), {"id": claim.task_id, "step": step})
    return Arrived(value)


def announce(session: Session, model: Model, task_id: UUID) -> bool:
    """Request an internal event for the end of a task that the waiting task is not the parent of.

    Returns:
        Whether the task is active. False: it has ended or was deleted.
    """
    return execute(session, stmt.mark_awaited(model), {"task_id": task_id}, model=model).first() is not None


def await_end(session: Session, model: Model, task_id: UUID) -> bool:
    """Request an internal event as `announce` does, in a new session, without waiting for a lock.

    Sets READ COMMITTED.

    Returns:
        Whether that worked. False: another transaction has locked the task, and nothing was written.
    """
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


LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE
