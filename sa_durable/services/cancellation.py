"""Cancel a task and its descendants.

Lock order: from root to leaf, and the rows of a generation by id. All functions that lock several tasks keep
to it, so they don't deadlock. A function that can't keep to the order doesn't wait for locks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..codec import dumps
from ..errors import TaskNotFound
from ..models import queues_beside
from ..statements import cancellation as stmt
from ..statements import spawn as spawn_stmt
from ..statements.arrays import uuids
from ..values import TaskError
from .execute import execute
from .notifications import can_notify

if TYPE_CHECKING:
    from ..models import DurableTask


LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE


class Busy(Exception):
    """Another transaction has locked one of these tasks, and the caller doesn't wait for locks.

    The caller must roll back to its savepoint.

    Args:
        model: The queue of the tasks.
        ids: The tasks, some of which are locked.
    """

    def __init__(self, model: type[DurableTask], ids: list[UUID]) -> None:
        super().__init__(model.__queue__, ids)
        self.model, self.ids = model, ids


def cancel(session: Session, model: type[DurableTask], task_id: UUID, *, wait: bool = True) -> bool:
    """Cancel a task and its descendants in all queues of its Base.

    Returns False if the task had ended already. Children of a completed descendant go on.

    Args:
        session: The caller's session.
        model: The queue of the task.
        task_id: The task.
        wait: Whether to wait for locks. Pass False if this transaction has locked other tasks out of order.

    Raises:
        TaskNotFound: The queue has no such task.
        Busy: Another transaction has locked one of the tasks, and `wait` is False.
    """
    if execute(session, spawn_stmt.outcome(model), {"task_id": task_id}, model=model).first() is None:
        raise TaskNotFound(model.__queue__, task_id)
    return _cancel(session, model, {model: [task_id]}, wait=wait) > 0


def cancel_descendants(session: Session, model: type[DurableTask], task_id: UUID) -> int:
    """Cancel the descendants of a task that has just ended without a result. Returns their number.

    This transaction must have locked the task.
    """
    return _cancel(session, model, _children(session, model, [task_id]), wait=True)


def lock(session: Session, model: type[DurableTask], ids: list[UUID], *, wait: bool) -> list[UUID]:
    """Lock the active tasks among `ids` and return their ids. Raises Busy if `wait` is False."""
    statement = stmt.lock_active(model, wait=wait)
    try:
        return list(execute(session, statement, {"ids": uuids(ids)}, model=model).scalars())
    except DBAPIError as error:
        if wait or getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise Busy(model, ids) from error


def wait_until_unlocked(session: Session, busy: Busy) -> None:
    """Wait until no transaction has locked these tasks. Keeps no lock."""
    with session.begin_nested() as locks:
        lock(session, busy.model, busy.ids, wait=True)
        locks.rollback()


def with_children(session: Session, model: type[DurableTask], task_ids: Iterable[UUID]) -> set[UUID]:
    """Return the tasks among `task_ids` that have active children, in any queue of the Base."""
    task_ids = list(task_ids)
    if not task_ids:
        return set()
    parameters = {"ids": uuids(task_ids)}
    return {
        parent
        for queue in queues_beside(model)
        for parent in execute(
            session, stmt.with_children(queue, model.__queue__), parameters, model=queue
        ).scalars()
    }


def cancel_locked(
    session: Session, model: type[DurableTask], task_ids: list[UUID], error: TaskError | None = None
) -> None:
    """Cancel active tasks that this transaction has locked, without their descendants."""
    if task_ids:
        ids = {"ids": uuids(task_ids)}
        execute(session, stmt.insert_cancelled_runs(model), ids, model=model)
        text = None if error is None else dumps(error.to_json(), place="error")
        notify = can_notify(session.connection(bind_arguments={"mapper": model}))
        execute(session, stmt.cancel(model, notify=notify), {**ids, "error": text}, model=model)
        execute(session, stmt.announce(model, notify=notify), ids, model=model)


def _cancel(
    session: Session,
    model: type[DurableTask],
    generation: Mapping[type[DurableTask], list[UUID]],
    *,
    wait: bool,
) -> int:
    cancelled = 0
    while generation:
        ended: list[UUID] = []
        for queue, ids in generation.items():
            locked = lock(session, queue, ids, wait=wait)
            cancel_locked(session, queue, locked)
            ended += locked
        cancelled += len(ended)
        generation = _children(session, model, ended)
    return cancelled


def _children(
    session: Session, model: type[DurableTask], parents: list[UUID]
) -> dict[type[DurableTask], list[UUID]]:
    """Return the active children of `parents`, by queue of the Base."""
    if not parents:
        return {}
    parameters = {"ids": uuids(parents)}
    generation = {}
    for queue in queues_beside(model):
        ids = list(execute(session, stmt.children(queue), parameters, model=queue).scalars())
        if ids:
            generation[queue] = ids
    return generation
