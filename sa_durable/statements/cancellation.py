"""Cancel tasks. Callers lock them first, root to leaf, and each generation in the order of ids."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Select,
    Text,
    Update,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert

from ..models.names import Role
from ..models.predicates import ACTIVE, LIMITED
from . import clock, events, notifications
from .cache import cached_statement
from .plan_shape import ONE, any_of, opaque_limit
from .tables import Model, table_of


@cached_statement
def lock_active(model: Model, *, wait: bool = True) -> Select[Any]:
    """Lock the active tasks among `ids`, in the order of ids, like every statement that locks several tasks.

    Without `wait`, raises an error (55P03) if another transaction has locked one.
    """
    active = select(model.id).where(_among(model.id), text(ACTIVE)).order_by(model.id)
    return active.with_for_update(nowait=not wait)


@cached_statement
def children(model: Model) -> Select[Any]:
    """Return the active tasks of this queue whose parents are the tasks `ids` of any queue."""
    return select(model.id).where(model.parent_id == any_of("ids", Uuid()), text(ACTIVE)).order_by(model.id)


@cached_statement
def with_children(model: Model, queue: str) -> Select[Any]:
    """Return the tasks among `ids` of `queue` that have active children in this queue."""
    table = table_of(model)
    found: Select[Any] = (
        select(table.c.parent_id)
        .distinct()
        .where(table.c.parent_id == any_of("ids", Uuid()), table.c.parent_queue == queue, text(ACTIVE))
    )
    return found


@cached_statement
def cancel(model: Model, *, notify: bool) -> Update:
    """Cancel the locked tasks `ids`, with `error` (JSON text or NULL).

    Raises the token, so that every later write of a worker for these tasks is rejected. With `notify`,
    notifies callers that wait for these tasks.
    """
    notification = [notifications.notify_waiters(table_of(model))] if notify else []
    error: ColumnElement[Any] = sql_cast(bindparam("error", type_=Text()), JSONB)
    return (
        update(model)
        .where(_among(model.id), text(ACTIVE))
        .values(
            state="cancelled",
            token=model.token + 1,
            finished_at=clock.now(),
            available_at=None,
            lease_expires_at=None,
            error=func.coalesce(error, model.error),
        )
        .returning(model.id, *notification)
    )


@cached_statement
def announce(model: Model, *, notify: bool) -> events.Appending:
    """Append the internal events of the cancelled tasks `ids`, which this transaction has locked."""
    tasks = table_of(model)
    ended = (
        select(tasks.c.id, events.is_announced(model, tasks).label("announced"))
        .where(_among(tasks.c.id))
        .subquery()
    )
    return events.announce(model, ended, notify=notify)


@cached_statement
def insert_cancelled_runs(model: Model) -> Insert:
    """Insert the history of the current attempts of the tasks `ids`, before they are cancelled."""
    tasks, runs = table_of(model), table_of(model, Role.RUNS)
    current = select(
        tasks.c.run_id,
        tasks.c.id,
        tasks.c.attempt,
        literal_column("'cancelled'"),
        tasks.c.claimed_by,
        tasks.c.started_at,
        tasks.c.lease_expires_at,
    ).where(_among(tasks.c.id), text(ACTIVE), tasks.c.started_at.is_not(None))
    names = ["id", "task_id", "attempt", "state", "worker", "started_at", "lease_expires_at"]
    return insert(runs).from_select(names, current)


def _among(column: Any) -> ColumnElement[bool]:
    return cast("ColumnElement[bool]", column == any_of("ids", Uuid()))


@cached_statement
def overdue(model: Model) -> Select[Any]:
    """Lock up to `limit` tasks past their deadline, the longest overdue first, passing over locked rows.

    Returns which of them had started (`started`).
    """
    table = table_of(model)
    return (
        select(table.c.id, table.c.first_started_at.is_not(None).label("started"))
        .where(text(LIMITED), table.c.cancel_at <= clock.now())
        .order_by(table.c.cancel_at)
        .limit(opaque_limit())
        .with_for_update(skip_locked=True, key_share=True)
    )


@cached_statement
def next_overdue(model: Model) -> Select[Any]:
    """Return in how long the next task is past its deadline, as an interval. NULL: no task has one."""
    table = table_of(model)
    first = (
        select(table.c.cancel_at)
        .where(text(LIMITED), table.c.cancel_at > clock.now())
        .order_by(table.c.cancel_at)
        .limit(ONE)  # instead of min(), as in maintenance.promote
    )
    return select(first.scalar_subquery() - clock.now())
