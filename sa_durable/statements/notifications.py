"""NOTIFY for idle workers: it saves time, but nothing depends on it, because workers also poll.

PostgreSQL commits transactions that notify one after the other. So a transaction notifies only if a worker is
idle: an idle worker sets `durable_queues.notify_until`, and the statement that writes a task checks it
(docs/decisions/0007). The check is a subquery of RETURNING that refers to no row, so PostgreSQL runs it once,
and only if a row was written.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Interval,
    Label,
    ScalarSelect,
    Select,
    Table,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    case,
    column,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.predicates import TERMINAL
from ..models.tables import TIME
from . import clock
from .arrays import array
from .cache import cached_statement
from .tables import Model

CHANNEL = "sa_durable"
"""Channel for workers, one for a database."""
ENDED = "sa_durable_ended"
"""Channel for callers that wait for a task. Payloads are the ids of ended tasks."""


class NotificationKind(StrEnum):
    """What a notification is about."""

    READY = "r"
    """There are tasks to claim."""
    WAKE = "s"
    """There are sleepers or events to process."""


def notify_workers(model: Model, kind: NotificationKind) -> Label[Any]:
    """Return a RETURNING column that notifies the workers of a queue, if one of them is idle."""
    return _notify(model, literal_column(f"'{kind}'", Text())).label("hint")


def notify_workers_by_row(model: Model, tasks: Table) -> Label[Any]:
    """Return a RETURNING column like `notify_workers`, for new tasks that may be sleeping.

    Runs once for each row. Doesn't notify of tasks that sleep for long: polling finds those in time.
    """
    # Literal SQL, so that the subquery refers to the row of RETURNING and doesn't read the table.
    kind = literal_column(
        f"CASE {tasks.name}.state"
        f" WHEN 'pending' THEN '{NotificationKind.READY}' ELSE '{NotificationKind.WAKE}' END",
        Text(),
    )
    soon = literal_column(f"{tasks.name}.available_at", TIME) < clock.now() + _SOON
    return _notify(model, kind, soon).label("hint")


_SOON = literal_column("interval '1 minute'", Interval())


def notify_waiters(tasks: Table) -> Label[Any]:
    """Return a RETURNING column that notifies callers that wait for a task to end.

    Only for tasks that are `awaited` and have ended.
    """
    ended = and_(tasks.c.awaited, literal_column(f"{tasks.name}.{TERMINAL}", Boolean()))
    notify = func.pg_notify(literal_column(f"'{ENDED}'", Text()), sql_cast(tasks.c.id, Text()), type_=Text())
    return case((ended, notify)).label("waiters")


@cached_statement
def send(model: Model, kind: NotificationKind) -> Select[Any]:
    """Notify the workers of a queue, like `notify_workers`, where no statement returns rows."""
    return select(notify_workers(model, kind))


def _notify(model: Model, kind: ColumnElement[str], *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    idle = model.Queue.__table__.alias("idle")
    # The oid identifies the schema: workers of another schema have a queues table of their own.
    payload = kind + literal_column(f"' ' || idle.tableoid || ' {model.__queue__}'", Text())
    wanted = idle.c.name == literal_column(f"'{model.__queue__}'", Text())
    return (
        select(func.pg_notify(literal_column(f"'{CHANNEL}'", Text()), payload, type_=Text()))
        .select_from(idle)
        .where(wanted, idle.c.notify_until > clock.now(), *conditions)
        .scalar_subquery()
    )


@cached_statement
def enable(queues: Table) -> ReturningInsert[Any]:
    """Enable notifications of the queues `names` (a sorted array) for `time`.

    Returns their names and the table's oid, which payloads contain.
    """
    wanted = func.unnest(array("names", Text())).table_valued(column("name", Text())).render_derived()
    until = clock.now() + sql_cast(bindparam("time", type_=Interval()), Interval())
    statement = insert(queues).from_select(["name", "notify_until"], select(wanted.c.name, until))
    return statement.on_conflict_do_update(
        index_elements=[queues.c.name], set_={"notify_until": statement.excluded.notify_until}
    ).returning(queues.c.name, sql_cast(literal_column("tableoid"), Text()).label("oid"))


@cached_statement
def disable(queues: Table) -> Update:
    """Disable notifications of the queues `names`."""
    return (
        update(queues)
        .where(queues.c.name == any_(array("names", Text())), queues.c.notify_until.is_not(None))
        .values(notify_until=null())
    )


@cached_statement
def notify_self() -> Select[Any]:
    """Notify this worker's channel of `payload`."""
    payload = sql_cast(bindparam("payload", type_=Text()), Text())
    return select(func.pg_notify(literal_column(f"'{CHANNEL}'", Text()), payload, type_=Text()))


@cached_statement
def set_short_lock_timeout() -> Select[Any]:
    """Raise an error instead of waiting for locks for more than 50 ms, until the transaction ends."""
    return select(func.set_config("lock_timeout", "50ms", literal_column("true")))
