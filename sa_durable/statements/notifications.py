"""NOTIFY, for workers that are idle: a hint, never needed; polling is the truth.

PostgreSQL commits transactions that notify one after the other, so nobody notifies unless somebody wants it: an idle
worker says so in `durable_queues.notify_until`, and whoever has something for a queue looks there in the very
statement that writes it (docs/decisions/0007). That look is a subquery of RETURNING that refers to no row: it is run
once, and only if a row was written.
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

CHANNEL = "sa_durable"  # for workers: the one of a database
ENDED = "sa_durable_ended"  # for whoever waits for a task from outside; payloads are ids


class NotificationKind(StrEnum):
    """What there is for a worker: something to claim, or a sleeper or event to look after."""

    READY = "r"
    WAKE = "s"


def notify_workers(model: Model, kind: NotificationKind) -> Label[Any]:
    """For RETURNING: tell the workers of a queue, if one is idle. A column of no interest."""
    return _notify(model, literal_column(f"'{kind}'", Text())).label("hint")


def notify_workers_by_row(model: Model, tasks: Table) -> Label[Any]:
    """As `hint`, for new tasks that may be asleep, unless they are for long: whoever looks for sleepers finds those in
    time. Looks once for each row."""
    # Literal, so that the subquery takes the row of RETURNING and doesn't read the table.
    kind = literal_column(
        f"CASE {tasks.name}.state WHEN 'pending' THEN '{NotificationKind.READY}' ELSE '{NotificationKind.WAKE}' END",
        Text(),
    )
    soon = literal_column(f"{tasks.name}.available_at", TIME) < clock.now() + _SOON
    return _notify(model, kind, soon).label("hint")


_SOON = literal_column("interval '1 minute'", Interval())


def notify_waiters(tasks: Table) -> Label[Any]:
    """For RETURNING of what may end tasks: tell those who wait for one from outside. Only of tasks that are `awaited`."""
    over = and_(tasks.c.awaited, literal_column(f"{tasks.name}.{TERMINAL}", Boolean()))
    tell = func.pg_notify(literal_column(f"'{ENDED}'", Text()), sql_cast(tasks.c.id, Text()), type_=Text())
    return case((over, tell)).label("waiters")


@cached_statement
def send(model: Model, kind: NotificationKind) -> Select[Any]:
    """As `hint`, for whoever has no RETURNING."""
    return select(notify_workers(model, kind))


def _notify(model: Model, kind: ColumnElement[str], *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    idle = model.Queue.__table__.alias("idle")
    # The table's oid: workers of another schema have a table, and hints, of their own.
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
    """Have whoever has something for the queues `names` (a sorted array) notify us, for `time`. Returns their names and
    the table's oid: what payloads say."""
    wanted = func.unnest(array("names", Text())).table_valued(column("name", Text())).render_derived()
    until = clock.now() + sql_cast(bindparam("time", type_=Interval()), Interval())
    statement = insert(queues).from_select(["name", "notify_until"], select(wanted.c.name, until))
    return statement.on_conflict_do_update(
        index_elements=[queues.c.name], set_={"notify_until": statement.excluded.notify_until}
    ).returning(queues.c.name, sql_cast(literal_column("tableoid"), Text()).label("oid"))


@cached_statement
def disable(queues: Table) -> Update:
    """Nobody need notify for the queues `names` any more."""
    return (
        update(queues)
        .where(queues.c.name == any_(array("names", Text())), queues.c.notify_until.is_not(None))
        .values(notify_until=null())
    )


@cached_statement
def notify_self() -> Select[Any]:
    """Notify ourselves of `payload`."""
    payload = sql_cast(bindparam("payload", type_=Text()), Text())
    return select(func.pg_notify(literal_column(f"'{CHANNEL}'", Text()), payload, type_=Text()))


@cached_statement
def set_short_lock_timeout() -> Select[Any]:
    """Rather fail than wait for locks in this transaction."""
    return select(func.set_config("lock_timeout", "50ms", literal_column("true")))
