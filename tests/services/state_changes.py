"""What workers do to a task, as plain updates: only moves that the transition table knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from sa_durable import DurableTask, TaskState
from sa_durable.ids import uuid7
from sa_durable.values import TRANSITIONS, Operation
from tests.shop import BillingTask

Model = type[DurableTask]
NOW = func.statement_timestamp()


def move(
    session: Session, task_id: UUID, verb: Operation, to: TaskState, model: Model, **values: Any
) -> None:
    tasks = model.__table__
    before = session.scalar(select(tasks.c.state).where(tasks.c.id == task_id))
    assert to in TRANSITIONS[TaskState(before), verb], f"{before} can't {verb} to {to}"
    session.execute(update(tasks).where(tasks.c.id == task_id).values(state=to.value, **values))


def claim(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    tasks = model.__table__
    started = {
        "first_started_at": func.coalesce(tasks.c.first_started_at, NOW),
        "started_at": NOW,
        "claimed_by": "a worker",
        "token": tasks.c.token + 1,
        "lease_expires_at": NOW + text("interval '30 s'"),
    }
    move(session, task_id, Operation.CLAIM, TaskState.RUNNING, model, **started)


_REST: dict[str, Any] = {"claimed_by": None, "lease_expires_at": None, "started_at": None}
_OVER: dict[str, Any] = {"available_at": None, "lease_expires_at": None, "finished_at": NOW}


def complete(session: Session, task_id: UUID, model: Model = BillingTask, result: Any = "done") -> None:
    move(session, task_id, Operation.COMPLETE, TaskState.COMPLETED, model, result=result, **_OVER)


def fail(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    """The last attempt fails."""
    error = {"type": "ValueError", "message": "no"}
    move(session, task_id, Operation.FAIL, TaskState.FAILED, model, error=error, **_OVER)


def retry_at_once(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    """An attempt fails, and the next one is due."""
    tasks = model.__table__
    again = {"attempt": tasks.c.attempt + 1, "run_id": uuid7(), "available_at": NOW, **_REST}
    move(session, task_id, Operation.FAIL, TaskState.PENDING, model, **again)


def retry_later(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    tasks = model.__table__
    due = NOW + text("interval '1 h'")
    again = {"attempt": tasks.c.attempt + 1, "run_id": uuid7(), "available_at": due, **_REST}
    move(session, task_id, Operation.FAIL, TaskState.SLEEPING, model, **again)


def sleep(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    due = NOW + text("interval '1 h'")
    move(session, task_id, Operation.SLEEP, TaskState.SLEEPING, model, available_at=due, **_REST)


def wake(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    move(session, task_id, Operation.WAKE, TaskState.PENDING, model, available_at=NOW)


def cancel(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    move(session, task_id, Operation.CANCEL, TaskState.CANCELLED, model, **_OVER)


def lose_lease(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    """A sweep takes the task from a lost worker."""
    tasks = model.__table__
    again = {"attempt": tasks.c.attempt + 1, "run_id": uuid7(), "token": tasks.c.token + 1, **_REST}
    move(session, task_id, Operation.SWEEP, TaskState.PENDING, model, **again)


def release(session: Session, task_id: UUID, model: Model = BillingTask) -> None:
    """A worker shuts down."""
    move(session, task_id, Operation.RELEASE, TaskState.PENDING, model, available_at=NOW, **_REST)


Move = Callable[..., None]

# Every place in a task's life that matters to its key, by the moves that lead there from `pending`.
LIVES: dict[str, tuple[Move, ...]] = {
    "pending": (),
    "running": (claim,),
    "sleeping": (claim, sleep),
    "woken": (claim, sleep, wake),
    "retried": (claim, retry_at_once),
    "retried later": (claim, retry_later),
    "swept": (claim, lose_lease),
    "released": (claim, release),
    "completed": (claim, complete),
    "failed": (claim, fail),
    "cancelled": (claim, cancel),
    "cancelled unseen": (cancel,),
}


def live(session: Session, task_id: UUID, life: str, model: Model = BillingTask) -> None:
    for step in LIVES[life]:
        step(session, task_id, model)
