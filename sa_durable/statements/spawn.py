"""Spawning: the inserts.

These are Core statements on tables, built once per queue, with named parameters: a spawn must cost no more
than its INSERT. Values that travel as text (params, headers, retry) are JSON already, and PostgreSQL casts
them.
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

# The columns that a spawn sets, in the order of its parameters. `available_at` and `state` follow from run_at
# and delay.
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

# Parameters that aren't columns. Their prefix keeps them apart from the application's own columns.
RUN_AT, DELAY, KEY_TTL = "durable_run_at", "durable_delay", "durable_key_ttl"
START_WITHIN, MAX_DURATION = "durable_start_within", "max_duration"
DUE_RUN_AT, DUE_DELAY = "durable_due_run_at", "durable_due_delay"
STATE_RUN_AT, STATE_DELAY = "durable_state_run_at", "durable_state_delay"
_AS_TEXT = frozenset({"params", "headers", "retry"})
_IDS = frozenset({"id", "run_id"})


def _bind(name: str, column_: Column[Any] | ColumnElement[Any]) -> ColumnElement[Any]:
    """Return parameter `name` for a column. JSON travels as text."""
    if name in _AS_TEXT:
        return sql_cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column_.type)


def start(run_at: ColumnElement[Any], delay: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return when a task is due, by the database's clock: `run_at` or now, plus `delay`."""
    return clock.after(delay, func.coalesce(run_at, clock.now()))


def state_at(started: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the state of a new task that is due at a time."""
    return case((started > clock.now(), text("'sleeping'")), else_=text("'pending'"))


def parameter(name: str, type_: Any) -> ColumnElement[Any]:
    """Return parameter `name`, with a cast that tells asyncpg its type."""
    return sql_cast(bindparam(name, type_=type_), type_)


def _start(run_at: str, delay: str) -> ColumnElement[Any]:
    return start(parameter(run_at, TIME), parameter(delay, Interval()))


def start_parameters(run_at: datetime | None, delay: timedelta) -> dict[str, Any]:
    """Return the parameters that say when a task is due."""
    repeated = {STATE_RUN_AT: run_at, STATE_DELAY: delay, DUE_RUN_AT: run_at, DUE_DELAY: delay}
    return {RUN_AT: run_at, DELAY: delay, **repeated}


def limit_parameters(start_within: timedelta | None, max_duration: timedelta | None) -> dict[str, Any]:
    """Return the parameters that say when a task is past its deadlines."""
    return {START_WITHIN: start_within, MAX_DURATION: max_duration}


NO_OPTION: Mapping[str, Any] = {
    **start_parameters(None, timedelta(0)),
    **limit_parameters(None, None),
    **dict.fromkeys(("idempotency_key", "key_hold", KEY_TTL)),
}
"""The parameters of a spawn without options, for a statement that has all of them."""


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
    """Insert one task. Returns its id and state, or no row if another task holds its key.

    A `keyed` task has a key; a `scheduled` task, a `run_at` or a `delay`; a `limited` task, a `cancellation`.
    `own` are the application's own columns that are set. With `notify`, notifies idle workers.

    Parameters are named by their columns, except for the constants above. Some constants stand for the same
    value again, because executemany on asyncpg miscounts a parameter that is used twice.
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
    """Make an insert pass over rows whose key is held.

    The predicate must be the index's own text, character by character.
    """
    return statement.on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))


# The parameters of a batch: type, and encoder of an array.
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
    """Return names of arrays, and parameters, of `insert_tasks`, for values of tasks by column.

    Without RUN_AT and DELAY, they are those of `insert_ready_tasks`. The values of all columns are in one
    order. A value that all tasks share travels once. Ids are given as digits.
    """
    varying: list[str] = []
    parameters: dict[str, Any] = {}
    for name, values in columns.items():
        if name not in _BATCH:
            continue  # a parameter of `insert_task` that repeats a value
        encode = _BATCH[name][1]
        if name in _IDS or values.count(values[0]) < len(values):
            varying.append(name)
            parameters[name] = encode(values)
        else:
            parameters[name] = values[0]
    return tuple(varying), parameters


@cached_statement
def insert_tasks(model: Model, varying: tuple[str, ...], *, notify: bool = True) -> ReturningInsert[Any]:
    """Insert many tasks, passing over tasks whose key is held. Returns ids and states of the inserted tasks.

    `varying` names the parameters that are arrays, with one element for each task. The others are one value
    for all tasks. `batch` makes both. Inserts in the order of the arrays, so that callers that sort by key
    lock the index's entries in one order. With `notify`, notifies idle workers of each task.
    """
    return _returning(_insert_tasks(model, varying, scheduled=True), model, scheduled=True, notify=notify)


@cached_statement
def insert_ready_tasks(model: Model, varying: tuple[str, ...], *, notify: bool = True) -> Select[Any]:
    """Insert many tasks that are due now, like `insert_tasks`. Notifies idle workers once.

    Returns the ids of the inserted tasks as one text, separated by commas, or NULL. A row for each task would
    cost the client as much as all its other work for the task.
    """
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
    """Return state, attempt, name, result and error of task `task_id`."""
    table = table_of(model)
    return select(
        table.c.id, table.c.state, table.c.attempt, table.c.name, table.c.result, table.c.error
    ).where(table.c.id == bindparam("task_id"))
