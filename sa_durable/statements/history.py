"""The attempts at a task."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CompoundSelect, Text, Uuid, bindparam, case, null, select, text
from sqlalchemy import cast as sql_cast

from ..models.names import Role
from ..models.predicates import TERMINAL
from .cache import cached_statement
from .tables import Model, table_of


@cached_statement
def attempts(model: Model) -> CompoundSelect[Any]:
    """Return every attempt at task `task_id`, in order, with its error as JSON text.

    These are the runs that ended, and the current run unless it is one of them. No row: there is no such
    task.
    """
    tasks, runs = table_of(model), table_of(model, Role.RUNS)
    task_id = bindparam("task_id", type_=Uuid())
    ended = select(
        runs.c.id.label("run_id"),
        runs.c.attempt,
        runs.c.state,
        runs.c.worker,
        runs.c.started_at,
        runs.c.ended_at,
        runs.c.lease_expires_at,
        sql_cast(runs.c.error, Text()).label("error"),
    ).where(runs.c.task_id == task_id)
    current = select(
        tasks.c.run_id,
        tasks.c.attempt,
        tasks.c.state,
        tasks.c.claimed_by,
        tasks.c.started_at,
        case((text(TERMINAL), tasks.c.finished_at), else_=null()),
        tasks.c.lease_expires_at,
        sql_cast(tasks.c.error, Text()),
    ).where(
        tasks.c.id == task_id,
        ~select(runs.c.id).where(runs.c.task_id == task_id, runs.c.attempt == tasks.c.attempt).exists(),
    )
    return ended.union_all(current).order_by("attempt")
