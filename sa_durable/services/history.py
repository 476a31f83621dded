"""The history of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.orm import Session

from ..errors import TaskNotFound
from ..statements import history as stmt
from ..values import TaskError, TaskRun, TaskState
from .claims import read_json
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def runs(session: Session, model: Model, task_id: UUID) -> list[TaskRun]:
    """Return every attempt, in order: see Durable.runs. Raises TaskNotFound."""
    rows = execute(session, stmt.attempts(model), {"task_id": task_id}, model=model).all()
    if not rows:
        raise TaskNotFound(model.__queue__, task_id)
    return [
        TaskRun(
            run_id=row.run_id,
            attempt=row.attempt,
            state=TaskState(row.state),
            worker=row.worker,
            started_at=row.started_at,
            ended_at=row.ended_at,
            lease_expires_at=row.lease_expires_at,
            error=TaskError.from_json(read_json(row.error, {})) if row.error else None,
        )
        for row in rows
    ]
