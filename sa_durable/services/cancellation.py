"""Cancelling a task and all that it spawned."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.orm import Session

from ..errors import TaskNotFound
from ..models import queues_beside
from ..statements import cancellation as stmt
from ..statements import tasks as task_stmt
from .database import execute

if TYPE_CHECKING:
    from ..models import DurableTask


def cancel(session: Session, model: type[DurableTask], task_id: UUID) -> bool:
    """Cancel a task and its descendants in every queue of its Base. False: it was terminal already.

    Root to leaf, and each generation's rows in the order of their ids: whoever locks several tasks does it in this
    order, so none of them deadlock. Raises TaskNotFound.
    """
    if execute(session, task_stmt.outcome(model), {"task_id": task_id}, model=model).first() is None:
        raise TaskNotFound(model.__queue__, task_id)
    generation = {model: [task_id]}
    cancelled = 0
    while generation:
        ended = {}
        for queue, ids in generation.items():
            locked = list(execute(session, stmt.lock_active(queue, ids), model=queue).scalars())
            if locked:
                execute(session, stmt.insert_cancelled_runs(queue, locked), model=queue)
                execute(session, stmt.cancel(queue, locked), model=queue)
                ended[queue] = locked
        cancelled += sum(map(len, ended.values()))
        generation = {
            queue: ids for queue in queues_beside(model) if (ids := _children(session, queue, ended))
        }
    return cancelled > 0


def _children(
    session: Session, queue: type[DurableTask], parents: dict[type[DurableTask], list[UUID]]
) -> list[UUID]:
    return sorted(
        child
        for parent, ids in parents.items()
        for child in execute(session, stmt.children(queue, parent.__queue__, ids), model=queue).scalars()
    )
