"""Spawning: the inserts.

Core statements on tables, built once per queue, their parameters by name: a spawn must cost what its INSERT costs.
Values that travel as text (params, headers, retry) are JSON already and are cast by PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

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
    literal_column,
    select,
    text,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.predicates import HELD
from ..models.tables import KEY, TIME
from . import arrays, clock, notifications
from .cache import cached_statement
from .notifications import NotificationKind
from .tables import Model, table_of

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
START_WITHIN, MAX_DURATION = "durable_start_within", "max_duration"
DUE_RUN_AT, DUE_DELAY = "durable_due_run_at", "durable_due_delay"
STATE_RUN_AT, STATE_DELAY = "durable_state_run_at", "durable_state_delay"
_AS_TEXT = frozenset({"params", "headers", "retry"})
_IDS = frozenset({"id", "run_id"})


def _bind(name: str, column_: Column[Any] | ColumnElement[Any]) -> ColumnElement[Any]:
    """Parameter `name` for a column: JSON travels as text."""
    if name in _AS_TEXT:
        return sql_cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column_.type)


def start(run_at: ColumnElement[Any], delay: ColumnElement[Any]) -> ColumnElement[Any]:
    """When a task starts, by the database's clock: `run_at`, else now, plus `delay`."""
    return clock.after(delay, func.coalesce(run_at, clock.now()))


def state_at(started: ColumnElement[Any]) -> ColumnElement[Any]:
    """The state of a new task that starts then."""
    return case((started > clock.now(), text("'sleeping'")), else_=text("'pending'"))


def parameter(name: str, type_: Any) -> ColumnElement[Any]:
    """Parameter `name`; the cast says its type where asyncpg can't see it."""
    return sql_cast(bindparam(name, type_=type_), type_)


def _start(run_at: str, delay: str) -> ColumnElement[Any]:
    return start(parameter(run_at, TIME), parameter(delay, Interval()))


def start_parameters(run_at: datetime | None, delay: timedelta) -> dict[str, Any]:
    """The parameters of when a task starts."""
    again = {STATE_RUN_AT: run_at, STATE_DELAY: delay, DUE_RUN_AT: run_at, DUE_DELAY: delay}
    return {RUN_AT: run_at, DELAY: delay, **again}


def limit_parameters(start_within: timedelta | None, max_duration: timedelta | None) -> dict[str, Any]:
    """The parameters of when a task is given up."""
    return {START_WITHIN: start_within, MAX_DURATION: max_duration}


# The parameters of a spawn without options, where a statement has them all
NO_OPTION: Mapping[str, Any] = {
    **start_parameters(None, timedelta(0)),
    **limit_parameters(None, None),
    **dict.fromkeys(("idempotency_key", "key_hold", KEY_TTL)),
}


@cached_statement
def insert_task(
    model: Model,
    *,
    keyed: bool,
    scheduled: bool,
    limited: bool = False,
    own: tuple[str, ...] = (),
    notify: bool = True,
) -> ReturningInsert[Any]:
    """Insert one task; with a key, unless the key is held. Returns its state, or no row. With `notify`, idle workers
    are told.

    `own` are columns of the application's. Parameters go by the columns' names, but for the constants above. Some of
    those stand for one value again: executemany on asyncpg miscounts a parameter that is used twice.
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
    if limited:
        due = _start(DUE_RUN_AT, DUE_DELAY) if scheduled else clock.now()
        values |= {
            "max_duration": parameter(MAX_DURATION, Interval()),
            "cancel_at": clock.after(parameter(START_WITHIN, Interval()), due),
        }
    values["created_at"] = clock.now()
    statement = insert(table)
    if keyed:
        values |= {
            "idempotency_key": bindparam("idempotency_key", type_=KEY),
            "key_hold": bindparam("key_hold", type_=Text()),
            "key_expires_at": clock.after(parameter(KEY_TTL, Interval())),
        }
        statement = unless_held(statement, table)
    return _returning(statement.values(values), model, scheduled=scheduled, notify=notify)


def _returning(statement: Insert, model: Model, *, scheduled: bool, notify: bool) -> ReturningInsert[Any]:
    table = table_of(model)
    returning: list[Any] = [table.c.id, table.c.state]
    if notify and scheduled:
        returning.append(notifications.notify_workers_by_row(model, table))
    elif notify:
        returning.append(notifications.notify_workers(model, NotificationKind.READY))
    return statement.returning(*returning)


def unless_held(statement: Insert, table: Table) -> Insert:
    """`statement`, passing over rows whose key is held. The predicate is the index's, letter by letter."""
    return statement.on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))


# Each parameter of a batch: its type, and how an array of it travels.
_BATCH: dict[str, tuple[Any, Callable[[Iterable[Any]], str]]] = {
    "id": (Uuid(), arrays.digits),
    "name": (Text(), arrays.texts),
    "params": (Text(), arrays.texts),
    "headers": (Text(), arrays.texts),
    "priority": (Integer(), arrays.numbers),
    "run_id": (Uuid(), arrays.digits),
    "max_attempts": (Integer(), arrays.numbers),
    "retry": (Text(), arrays.texts),
    "parent_queue": (Text(), arrays.texts),
    "parent_id": (Uuid(), arrays.uuids),
    RUN_AT: (TIME, arrays.moments),
    DELAY: (Interval(), arrays.durations),
    START_WITHIN: (Interval(), arrays.durations),
    MAX_DURATION: (Interval(), arrays.durations),
    "idempotency_key": (KEY, arrays.texts),
    "key_hold": (Text(), arrays.texts),
    KEY_TTL: (Interval(), arrays.durations),
}


def batch(columns: Mapping[str, Sequence[Any]]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The arrays and the parameters of `insert_tasks`, or without RUN_AT and DELAY of `insert_ready_tasks`, for values of
    tasks in one order: what is the same for all of them travels once, and may have been given once. Ids are digits."""
    varying: list[str] = []
    parameters: dict[str, Any] = {}
    for name, values in columns.items():
        if name not in _BATCH:
            continue  # a parameter of `insert_task` that says the same again
        encode = _BATCH[name][1]
        if name in _IDS or values.count(values[0]) < len(values):
            varying.append(name)
            parameters[name] = encode(values)
        else:
            parameters[name] = values[0]
    return tuple(varying), parameters


@cached_statement
def insert_tasks(model: Model, varying: tuple[str, ...], *, notify: bool = True) -> ReturningInsert[Any]:
    """Insert many tasks at once, passing over those whose key is held. Returns the ids and states of the new ones.

    `varying` names the parameters that are arrays, one element a task; the others are one value for all (`batch`
    makes both). In the order of the arrays, so that callers who sort by key take the index's locks in one order. With
    `notify`, idle workers are told of each of them.
    """
    return _returning(_insert_tasks(model, varying, scheduled=True), model, scheduled=True, notify=notify)


@cached_statement
def insert_ready_tasks(model: Model, varying: tuple[str, ...], *, notify: bool = True) -> Select[Any]:
    """As `insert_tasks`, for tasks that start now. Returns the ids of the new ones as one text, with commas between, or
    NULL: a row for each costs the client as much as all else that it does with a task. Idle workers are told once."""
    statement = _insert_tasks(model, varying, scheduled=False)
    new = _returning(statement, model, scheduled=False, notify=notify).cte("inserted")
    return select(func.string_agg(sql_cast(new.c.id, Text()), literal_column("','", Text())))


def _insert_tasks(model: Model, varying: tuple[str, ...], *, scheduled: bool) -> Insert:
    table = table_of(model)
    elements = {name: column(name, _BATCH[name][0]) for name in varying}
    source = func.unnest(*(arrays.array(name, _BATCH[name][0]) for name in varying))
    rows = source.table_valued(*elements.values(), name="new").render_derived()

    def value(name: str) -> ColumnElement[Any]:
        raw = rows.c[name] if name in elements else parameter(name, _BATCH[name][0])
        return sql_cast(raw, JSONB) if name in _AS_TEXT else raw

    values: dict[str, Any] = {name: value(name) for name in (*_PLAIN, "idempotency_key", "key_hold")}
    values["key_expires_at"] = clock.after(value(KEY_TTL))
    values["available_at"] = start(value(RUN_AT), value(DELAY)) if scheduled else clock.now()
    values["state"] = state_at(values["available_at"]) if scheduled else text("'pending'")
    values["max_duration"] = value(MAX_DURATION)
    values["cancel_at"] = clock.after(value(START_WITHIN), values["available_at"])
    values["created_at"] = clock.now()
    statement = insert(table).from_select(list(values), select(*values.values()), include_defaults=True)
    return unless_held(statement, table)


@cached_statement
def outcome(model: Model) -> Select[Any]:
    """State, attempt, name, result and error of task `task_id`."""
    table = table_of(model)
    return select(
        table.c.id, table.c.state, table.c.attempt, table.c.name, table.c.result, table.c.error
    ).where(table.c.id == bindparam("task_id"))
