"""Spawning: the inserts.

Core statements on tables, built once per queue, their parameters by name: a spawn must cost what its INSERT costs.
Values that travel as text (params, headers, retry) are JSON already and are cast by PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    Column,
    ColumnElement,
    Integer,
    Interval,
    Select,
    Table,
    Text,
    Uuid,
    bindparam,
    case,
    column,
    func,
    select,
    text,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.predicates import HELD
from ..models.tables import KEY, TIME
from . import arrays, clock
from .memo import memo

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]

# What a spawn sets, in the order of its parameters. `available_at` and `state` follow from run_at and delay.
_PLAIN = (
    "id",
    "name",
    "params",
    "headers",
    "priority",
    "run_id",
    "max_attempts",
    "retry",
    "parent_queue",
    "parent_id",
)
# Parameters that are no columns; named so that they are none of the application's either.
RUN_AT, DELAY, KEY_TTL = "durable_run_at", "durable_delay", "durable_key_ttl"
STATE_RUN_AT, STATE_DELAY = "durable_state_run_at", "durable_state_delay"
_AS_TEXT = frozenset({"params", "headers", "retry"})


def table_of(model: Model) -> Table:
    return cast(Table, model.__table__)


def _bind(name: str, column_: Column[Any] | ColumnElement[Any]) -> ColumnElement[Any]:
    """Parameter `name` for a column: JSON travels as text."""
    if name in _AS_TEXT:
        return sql_cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column_.type)


def start(run_at: ColumnElement[Any], delay: ColumnElement[Any]) -> ColumnElement[Any]:
    """When a task starts, by the database's clock: `run_at`, else now, plus `delay`."""
    return func.coalesce(run_at, clock.now()) + delay


def state_at(started: ColumnElement[Any]) -> ColumnElement[Any]:
    """The state of a new task that starts then."""
    return case((started > clock.now(), text("'sleeping'")), else_=text("'pending'"))


def parameter(name: str, type_: Any) -> ColumnElement[Any]:
    """Parameter `name`; the cast says its type where asyncpg can't see it."""
    return sql_cast(bindparam(name, type_=type_), type_)


def _start(run_at: str, delay: str) -> ColumnElement[Any]:
    return start(parameter(run_at, TIME), parameter(delay, Interval()))


def starts(run_at: datetime | None, delay: timedelta) -> dict[str, Any]:
    """The parameters of when a task starts."""
    return {RUN_AT: run_at, DELAY: delay, STATE_RUN_AT: run_at, STATE_DELAY: delay}


@memo
def insert_task(
    model: Model, *, keyed: bool, scheduled: bool, own: tuple[str, ...] = ()
) -> ReturningInsert[Any]:
    """Insert one task; with a key, unless the key is held. Returns its state, or no row.

    `own` are columns of the application's. Parameters go by the columns' names, but for the constants above. Two of
    those stand for one value each, twice: executemany on asyncpg miscounts a parameter that is used twice.
    """
    table = table_of(model)
    values: dict[str, Any] = {name: _bind(name, table.c[name]) for name in (*_PLAIN, *own)}
    if scheduled:
        values |= {
            "available_at": _start(RUN_AT, DELAY),
            "state": state_at(_start(STATE_RUN_AT, STATE_DELAY)),
        }
    else:
        values |= {"available_at": clock.now(), "state": text("'pending'")}
    values["created_at"] = clock.now()
    statement = insert(table)
    if keyed:
        values |= {
            "idempotency_key": bindparam("idempotency_key", type_=KEY),
            "key_hold": bindparam("key_hold", type_=Text()),
            "key_expires_at": clock.now() + parameter(KEY_TTL, Interval()),
        }
        statement = unless_held(statement, table)
    return statement.values(values).returning(table.c.id, table.c.state)


def unless_held(statement: Insert, table: Table) -> Insert:
    """`statement`, passing over rows whose key is held. The predicate is the index's, letter by letter."""
    return statement.on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))


# Each parameter of a batch: its type, and how an array of it travels.
_BATCH: dict[str, tuple[Any, Callable[[Iterable[Any]], str]]] = {
    "id": (Uuid(), arrays.uuids),
    "name": (Text(), arrays.texts),
    "params": (Text(), arrays.texts),
    "headers": (Text(), arrays.texts),
    "priority": (Integer(), arrays.numbers),
    "run_id": (Uuid(), arrays.uuids),
    "max_attempts": (Integer(), arrays.numbers),
    "retry": (Text(), arrays.texts),
    "parent_queue": (Text(), arrays.texts),
    "parent_id": (Uuid(), arrays.uuids),
    RUN_AT: (TIME, arrays.moments),
    DELAY: (Interval(), arrays.durations),
    "idempotency_key": (KEY, arrays.texts),
    "key_hold": (Text(), arrays.texts),
    KEY_TTL: (Interval(), arrays.durations),
}


def batch(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The arrays and the parameters of `insert_tasks` for rows: what is the same for all of them travels once."""
    varying: list[str] = []
    parameters: dict[str, Any] = {}
    for name, (_, encode) in _BATCH.items():
        values = [row[name] for row in rows]
        if name == "id" or any(value != values[0] for value in values):
            varying.append(name)
            parameters[name] = encode(values)
        else:
            parameters[name] = values[0]
    return tuple(varying), parameters


@memo
def insert_tasks(model: Model, varying: tuple[str, ...]) -> ReturningInsert[Any]:
    """Insert many tasks at once, passing over those whose key is held. Returns the ids and states of the new ones.

    `varying` names the parameters that are arrays, one element a task; the others are one value for all (`batch`
    makes both). In the order of the arrays, so that callers who sort by key take the index's locks in one order.
    """
    table = table_of(model)
    elements = {name: column(name, _BATCH[name][0]) for name in varying}
    source = func.unnest(*(arrays.array(name, _BATCH[name][0]) for name in varying))
    rows = source.table_valued(*elements.values(), name="new").render_derived()

    def value(name: str) -> ColumnElement[Any]:
        raw = rows.c[name] if name in elements else parameter(name, _BATCH[name][0])
        return sql_cast(raw, JSONB) if name in _AS_TEXT else raw

    values = {name: value(name) for name in (*_PLAIN, "idempotency_key", "key_hold")}
    values["key_expires_at"] = clock.now() + value(KEY_TTL)
    values["available_at"] = start(value(RUN_AT), value(DELAY))
    values["state"] = state_at(values["available_at"])
    values["created_at"] = clock.now()
    statement = insert(table).from_select(list(values), select(*values.values()), include_defaults=True)
    return unless_held(statement, table).returning(table.c.id, table.c.state)


@memo
def outcome(model: Model) -> Select[Any]:
    """State, attempt, name, result and error of task `task_id`."""
    table = table_of(model)
    return select(
        table.c.id, table.c.state, table.c.attempt, table.c.name, table.c.result, table.c.error
    ).where(table.c.id == bindparam("task_id"))
