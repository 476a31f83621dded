"""Cancelling a task and all that it spawned."""

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


LOCK_NOT_AVAILABLE = "55P03"


class Busy(Exception):
    """Another transaction has locked one of these tasks, and they weren't waited for: this one has to be undone up to
    its savepoint."""

    def __init__(self, model: type[DurableTask], ids: list[UUID]) -> None:
        super().__init__(model.__queue__, ids)
        self.model, self.ids = model, ids


def cancel(session: Session, model: type[DurableTask], task_id: UUID, *, wait: bool = True) -> bool:
    """Cancel a task and its descendants in every queue of its Base. False: it was terminal already.

    Root to leaf, and each generation's rows in the order of their ids: whoever locks several tasks does it in this
    order, so none of them deadlock; who can't keep to it doesn't `wait`. What a completed descendant left running
    goes on. Raises TaskNotFound, and Busy without `wait`.
    """
    if execute(session, spawn_stmt.outcome(model), {"task_id": task_id}, model=model).first() is None:
        raise TaskNotFound(model.__queue__, task_id)
    return _cancel(session, model, {model: [task_id]}, wait=wait) > 0


def cancel_descendants(session: Session, model: type[DurableTask], task_id: UUID) -> int:
    """Cancel what descends from a task that has just ended without a result, and whose row this transaction has
    locked. Returns how many."""
    return _cancel(session, model, _children(session, model, [task_id]), wait=True)


def lock(session: Session, model: type[DurableTask], ids: list[UUID], *, wait: bool) -> list[UUID]:
    """Lock those of these tasks that are active, and return them. Raises Busy without `wait`."""
    statement = stmt.lock_active(model, wait=wait)
    try:
        return list(execute(session, statement, {"ids": uuids(ids)}, model=model).scalars())
    except DBAPIError as error:
        if wait or getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise Busy(model, ids) from error


def wait_until_unlocked(session: Session, busy: Busy) -> None:
    """Wait until nobody has locked these tasks, and lock none of them."""
    with session.begin_nested() as locks:
        lock(session, busy.model, busy.ids, wait=True)
        locks.rollback()


def with_children(session: Session, model: type[DurableTask], task_ids: Iterable[UUID]) -> set[UUID]:
    """Those tasks that have active children, in any queue of the Base."""
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
    """Cancel active tasks that this transaction has locked, and nothing that descends from them."""
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
    """The active children of `parents`, in every queue of the Base that has any."""
    if not parents:
        return {}
    parameters = {"ids": uuids(parents)}
    generation = {}
    for queue in queues_beside(model):
        ids = list(execute(session, stmt.children(queue), parameters, model=queue).scalars())
        if ids:
            generation[queue] = ids
    return generation
