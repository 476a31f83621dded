"""Events: appended by whoever has something to tell, decided by workers.

The rows of a name are candidates. The earliest that is visible when a worker decides becomes the event, under an
advisory lock on the name (statements.locks), and that is final.
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
    """Append `payload` (JSON text) under `name`. Takes no lock, waits for nobody. With `notify`, idle workers are told."""
    payload = sql_cast(bindparam("payload", type_=Text()), JSONB)
    values = {
        "id": bindparam("id", type_=Uuid()),
        "name": bindparam("name", type_=Text()),
        "payload": payload,
        "emitted_at": clock.now(),
    }
    return _telling(insert(table_of(model, Role.EVENTS)).values(values), model, notify=notify)


def _telling(statement: Insert, model: Model, *, notify: bool) -> Appending:
    return statement.returning(notify_workers(model, NotificationKind.WAKE)) if notify else statement


TASK_EVENT = "$task:"  # and a task's id: it has ended


def is_announced(model: Model, tasks: Table) -> ColumnElement[bool]:
    """Whether the end of a task concerns others: somebody may wait for it, or it leaves waits behind."""
    waits = table_of(model, Role.WAITS)
    left = select(waits.c.task_id).where(waits.c.task_id == tasks.c.id).correlate(tasks)
    return or_(tasks.c.parent_id.is_not(None), tasks.c.awaited, exists_by_index(left))


def announce(model: Model, ended: FromClause, *, notify: bool = True) -> Appending:
    """Append the internal event of each task in `ended` that is `announced`. It never touches who waits. As `emit`."""
    rows = select(
        func.gen_random_uuid(),
        literal(TASK_EVENT) + sql_cast(ended.c.id, Text()),
        text("'null'::jsonb"),
        clock.now(),
    ).where(ended.c.announced)
    names = ["id", "name", "payload", "emitted_at"]
    statement = insert(table_of(model, Role.EVENTS)).from_select(names, rows, include_defaults=False)
    return _telling(statement, model, notify=notify)


@cached_statement
def unsettled(model: Model) -> Select[Any]:
    """The names of the `limit` oldest rows that nobody has decided about, each once or more."""
    table = table_of(model, Role.EVENTS)
    return select(table.c.name).where(text("settled_at IS NULL")).order_by(table.c.id).limit(opaque_limit())


@cached_statement
def settle(model: Model) -> ReturningUpdate[Any]:
    """Decide about every open row of `names`, whose locks we have: the earliest is the event, unless there is one.
    Returns their ids, names, and whether they were dropped."""
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
    # As arrays: whoever joins is planned by how many rows are expected. With a look for the earliest at each row, 500
    # names among 50,000 rows took 5 to 10 s where nobody had analysed the table, by the index of open ones (measured).
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
    """Take away the rows of `names`: internal ones, whose news is the task's own row."""
    table = table_of(model, Role.EVENTS)
    return delete(table).where(table.c.name == any_of("names", Text()), ~table.c.dropped)


@cached_statement
def find(model: Model) -> Select[Any]:
    """The event `name`: its payload as JSON text, and whether that is decided; else its earliest candidate."""
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
