"""Events: appended by emitters, decided by workers.

All rows of a name are candidates. When a worker decides the name, the earliest row that it can see becomes
the event, and that is final. The worker holds an advisory lock on the name (statements.locks).
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Delete,
    FromClause,
    Select,
    Table,
    Text,
    Uuid,
    all_,
    any_,
    bindparam,
    delete,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from ..models.names import Role
from . import clock
from .cache import cached_statement
from .notifications import NotificationKind, notify_workers
from .plan_shape import ONE, any_of, exists_by_index, opaque_limit
from .tables import Model, table_of

Appending = Insert | ReturningInsert[Any]


@cached_statement
def emit(model: Model, *, notify: bool = True) -> Appending:
    """Append `payload` (JSON text) under `name`. Takes no lock and waits for no transaction.

    With `notify`, notifies idle workers.
    """
    payload = sql_cast(bindparam("payload", type_=Text()), JSONB)
    values = {
        "id": bindparam("id", type_=Uuid()),
        "name": bindparam("name", type_=Text()),
        "payload": payload,
        "emitted_at": clock.now(),
    }
    return _with_notification(insert(table_of(model, Role.EVENTS)).values(values), model, notify=notify)


def _with_notification(statement: Insert, model: Model, *, notify: bool) -> Appending:
    return statement.returning(notify_workers(model, NotificationKind.WAKE)) if notify else statement


TASK_EVENT = "$task:"
"""Prefix of the internal events that announce the end of a task, before the task's id."""


def is_announced(model: Model, tasks: Table) -> ColumnElement[bool]:
    """Return the condition that the end of a task is announced by an event.

    It is if a task or caller may wait for the end, or if the task leaves waits behind.
    """
    waits = table_of(model, Role.WAITS)
    left = select(waits.c.task_id).where(waits.c.task_id == tasks.c.id).correlate(tasks)
    return or_(tasks.c.parent_id.is_not(None), tasks.c.awaited, exists_by_index(left))


def announce(model: Model, ended: FromClause, *, notify: bool = True) -> Appending:
    """Append the internal event of each task in `ended` that is `announced`. Touches no waits.

    With `notify`, notifies idle workers.
    """
    rows = select(
        func.gen_random_uuid(),
        literal(TASK_EVENT) + sql_cast(ended.c.id, Text()),
        text("'null'::jsonb"),
        clock.now(),
    ).where(ended.c.announced)
    names = ["id", "name", "payload", "emitted_at"]
    statement = insert(table_of(model, Role.EVENTS)).from_select(names, rows, include_defaults=False)
    return _with_notification(statement, model, notify=notify)


@cached_statement
def unsettled(model: Model) -> Select[Any]:
    """Return the names of the `limit` oldest rows that no worker has decided, some more than once."""
    table = table_of(model, Role.EVENTS)
    return select(table.c.name).where(text("settled_at IS NULL")).order_by(table.c.id).limit(opaque_limit())


@cached_statement
def settle(model: Model) -> ReturningUpdate[Any]:
    """Decide every open row of `names`, whose locks are held: the earliest becomes the event.

    Rows of a name that has an event already are dropped. Returns their ids and names, and whether they were
    dropped.
    """
    table = table_of(model, Role.EVENTS)
    row = table.alias("candidate")
    first = (
        func.first_value(row.c.id)
        .over(partition_by=row.c.name, order_by=[row.c.settled_at.is_(None), row.c.id])
        .label("event")
    )
    candidates = (
        select(row.c.id, row.c.settled_at, first).where(row.c.name == any_of("names", Text()), ~row.c.dropped)
    ).cte("candidates")
    # Arrays instead of joins, whose plans depend on how many rows the planner expects. With a search for the
    # earliest row at each row, 500 names among 50,000 rows took 5 to 10 s on a table without statistics,
    # through the index of open rows (measured).
    open_ = select(candidates.c.id).where(candidates.c.settled_at.is_(None)).scalar_subquery()
    events = select(candidates.c.event).distinct().scalar_subquery()
    return (
        update(table)
        .where(table.c.id == any_(func.array(open_)))
        .values(settled_at=clock.now(), dropped=table.c.id != all_(func.array(events)))
        .returning(table.c.id, table.c.name, table.c.dropped)
    )


@cached_statement
def discard(model: Model) -> Delete:
    """Delete the rows of `names`, which are internal events: the task's own row says the same."""
    table = table_of(model, Role.EVENTS)
    return delete(table).where(table.c.name == any_of("names", Text()), ~table.c.dropped)


@cached_statement
def find(model: Model) -> Select[Any]:
    """Return the event `name`, or its earliest candidate: payload (JSON text), and whether it is settled."""
    table = table_of(model, Role.EVENTS)
    found = (
        select(
            sql_cast(table.c.payload, Text()).label("payload"),
            table.c.settled_at.is_not(None).label("settled"),
        )
        .where(table.c.name == bindparam("name", type_=Text()), ~table.c.dropped)
        .order_by(table.c.settled_at.is_(None), table.c.id)
        .limit(ONE)
    )
    return cast("Select[Any]", found)
