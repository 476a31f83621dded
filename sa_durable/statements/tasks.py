"""Spawning, and the holder of a key.

Core statements on tables, built once per queue, their parameters by name: a spawn must cost what its INSERT costs.
Values that travel as text (params, headers, retry) are JSON already and are cast by PostgreSQL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Integer,
    Interval,
    Select,
    Table,
    Text,
    Update,
    Uuid,
    bindparam,
    case,
    column,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.predicates import ACTIVE, HELD, TERMINAL
from ..models.tables import KEY, TIME
from . import clock
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
_KEYED = ("idempotency_key", "key_hold", "key_ttl")
_AS_TEXT = frozenset({"params", "headers", "retry"})


def table_of(model: Model) -> Table:
    return cast(Table, model.__table__)


def _bind(name: str, column_: Column[Any] | ColumnElement[Any]) -> ColumnElement[Any]:
    """Parameter `name` for a column: JSON travels as text."""
    if name in _AS_TEXT:
        return sql_cast(bindparam(name, type_=Text()), JSONB)
    return bindparam(name, type_=column_.type)


def _schedule(run_at: ColumnElement[Any], delay: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """When a task starts, by the database's clock: `run_at`, else now, plus `delay`."""
    start = func.coalesce(run_at, clock.now()) + delay
    return {
        "available_at": start,
        "state": case((start > clock.now(), text("'sleeping'")), else_=text("'pending'")),
    }


def _run_at_and_delay() -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    # The casts say the types to asyncpg, which can't see them through coalesce.
    return sql_cast(bindparam("run_at", type_=TIME), TIME), sql_cast(
        bindparam("delay", type_=Interval()), Interval()
    )


@memo
def insert_task(
    model: Model, *, keyed: bool, scheduled: bool, own: tuple[str, ...] = ()
) -> ReturningInsert[Any]:
    """Insert one task; with a key, unless the key is held. Returns its state, or no row.

    `own` are columns of the application's. Parameters: those of `row_parameters`, and `own`.
    """
    table = table_of(model)
    values: dict[str, Any] = {name: _bind(name, table.c[name]) for name in (*_PLAIN, *own)}
    if scheduled:
        values |= _schedule(*_run_at_and_delay())
    else:
        values |= {"available_at": clock.now(), "state": text("'pending'")}
    values["created_at"] = clock.now()
    statement = insert(table)
    if keyed:
        values |= {
            "idempotency_key": bindparam("idempotency_key", type_=KEY),
            "key_hold": bindparam("key_hold", type_=Text()),
            "key_expires_at": clock.now() + sql_cast(bindparam("key_ttl", type_=Interval()), Interval()),
        }
        statement = unless_held(statement, table)
    return statement.values(values).returning(table.c.id, table.c.state)


def unless_held(statement: Insert, table: Table) -> Insert:
    """`statement`, passing over rows whose key is held. The predicate is the index's, letter by letter."""
    return statement.on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))


_ARRAYS: dict[str, Any] = {
    "id": Uuid(),
    "name": Text(),
    "params": Text(),
    "headers": Text(),
    "priority": Integer(),
    "run_id": Uuid(),
    "max_attempts": Integer(),
    "retry": Text(),
    "parent_queue": Text(),
    "parent_id": Uuid(),
    "run_at": TIME,
    "delay": Interval(),
    "idempotency_key": KEY,
    "key_hold": Text(),
    "key_ttl": Interval(),
}


@memo
def insert_tasks(model: Model, arrays: tuple[str, ...]) -> ReturningInsert[Any]:
    """Insert many tasks at once, passing over those whose key is held. Returns the ids and states of the new ones.

    `arrays` names the parameters that are arrays, one element a task; the others are one value for all. In the
    order of the arrays, so that callers who sort by key take the index's locks in one order.
    """
    table = table_of(model)
    elements = {name: column(name, _ARRAYS[name]) for name in arrays}
    source = func.unnest(
        *(sql_cast(bindparam(n, type_=ARRAY(_ARRAYS[n])), ARRAY(_ARRAYS[n])) for n in arrays)
    )
    rows = source.table_valued(*elements.values(), name="new").render_derived()

    def value(name: str) -> ColumnElement[Any]:
        raw = (
            rows.c[name]
            if name in elements
            else sql_cast(bindparam(name, type_=_ARRAYS[name]), _ARRAYS[name])
        )
        return sql_cast(raw, JSONB) if name in _AS_TEXT else raw

    values = {name: value(name) for name in (*_PLAIN, "idempotency_key", "key_hold")}
    values["key_expires_at"] = clock.now() + value("key_ttl")
    values |= _schedule(value("run_at"), value("delay"))
    values["created_at"] = clock.now()
    statement = insert(table).from_select(list(values), select(*values.values()), include_defaults=True)
    return unless_held(statement, table).returning(table.c.id, table.c.state)


def batch_parameters() -> tuple[str, ...]:
    """The names of the parameters of `insert_tasks`."""
    return tuple(_ARRAYS)


@memo
def holder(model: Model) -> Select[Any]:
    """Who holds `key`: what a spawn tells its caller, and whether the stored params equal `params` (as jsonb: order
    of keys and 1 against 1.0 don't matter) and the key has outlived its time."""
    table = table_of(model)
    return select(
        *_holder_columns(table),
        (table.c.params == sql_cast(bindparam("params", type_=Text()), JSONB)).label("params_match"),
    ).where(table.c.idempotency_key == bindparam("key", type_=KEY), text(HELD))


@memo
def holders(model: Model) -> Select[Any]:
    """As `holder`, for arrays of `keys` and `params` of the same length; with the position of each, from 1."""
    table = table_of(model)
    wanted = (
        func.unnest(
            sql_cast(bindparam("keys", type_=ARRAY(KEY)), ARRAY(Text())),
            sql_cast(bindparam("params", type_=ARRAY(Text())), ARRAY(Text())),
        )
        .table_valued(
            column("key", Text()), column("wanted_params", Text()), with_ordinality="position", name="wanted"
        )
        .render_derived()
    )
    position: ColumnElement[int] = sql_cast(wanted.c.position, BigInteger)
    return (
        select(
            position.label("position"),
            *_holder_columns(table),
            (table.c.params == sql_cast(wanted.c.wanted_params, JSONB)).label("params_match"),
        )
        .select_from(wanted)
        .join(table, (table.c.idempotency_key == wanted.c.key) & text(HELD))
    )


def _holder_columns(table: Table) -> tuple[ColumnElement[Any], ...]:
    started = literal_column("first_started_at IS NOT NULL", Boolean()).label("started")
    return (
        table.c.id,
        table.c.run_id,
        table.c.attempt,
        table.c.state,
        table.c.name,
        started,
        _expired(table).label("expired"),
    )


def _expired(table: Table) -> ColumnElement[bool]:
    # An active holder never expires: its time counts once it is terminal.
    return (func.coalesce(table.c.key_expires_at <= clock.now(), False)) & literal_column(
        f"({TERMINAL})", Boolean()
    )


@memo
def held_task(model: Model) -> Select[Any]:
    """The task that holds `key` and has not outlived it."""
    return select(model).where(
        model.idempotency_key == bindparam("key", type_=KEY), text(HELD), ~_expired(table_of(model))
    )


@memo
def release_expired(model: Model) -> Update:
    """Free the key of task `task_id`, if its time is over (checked again: somebody else may have done it)."""
    table = table_of(model)
    return (
        update(table)
        .where(table.c.id == bindparam("task_id"), text(HELD), _expired(table))
        .values(key_hold=None)
    )


def release_key(model: Model, key: str) -> Update:
    """Free `key`, whoever holds it. Returns the holder's id."""
    return (
        update(model)
        .where(model.idempotency_key == key, text(HELD))
        .values(key_hold=None)
        .returning(model.id)
    )


def update_waiting(model: Model, values: dict[str, Any], own: dict[str, Any]) -> Update:
    """Give task `id` of `values` other params, headers, priority and schedule, if it has never started.

    Through the ORM, so that loaded objects see it.
    """
    schedule = _schedule(
        sql_cast(bindparam(None, values["run_at"], type_=TIME), TIME),
        sql_cast(bindparam(None, values["delay"], type_=Interval()), Interval()),
    )
    new: dict[str, Any] = {
        "params": sql_cast(bindparam(None, values["params"], type_=Text()), JSONB),
        "headers": sql_cast(bindparam(None, values["headers"], type_=Text()), JSONB),
        "priority": values["priority"],
        **schedule,
        **own,
    }
    waiting = (model.first_started_at.is_(None), text(ACTIVE), text(HELD))
    return update(model).where(model.id == values["id"], *waiting).values(new).returning(model.state)


def lock_active(model: Model, ids: list[Any]) -> Select[Any]:
    """Lock those of `ids` that aren't terminal, in the order of ids, as every statement that locks several does."""
    return select(model.id).where(model.id.in_(ids), text(ACTIVE)).order_by(model.id).with_for_update()


def children(model: Model, queue: str, ids: list[Any]) -> Select[Any]:
    """The children of `queue`'s tasks `ids` that aren't terminal."""
    return (
        select(model.id)
        .where(model.parent_id.in_(ids), model.parent_queue == queue, text(ACTIVE))
        .order_by(model.id)
    )


def cancel(model: Model, ids: list[Any]) -> Update:
    """Cancel locked tasks. The token is raised: whatever a worker still writes for them is rejected."""
    return (
        update(model)
        .where(model.id.in_(ids), text(ACTIVE))
        .values(
            state="cancelled",
            token=model.token + 1,
            finished_at=clock.now(),
            available_at=None,
            lease_expires_at=None,
        )
        .returning(model.id)
    )


def insert_cancelled_runs(model: Model, ids: list[Any]) -> Insert:
    """History of the current attempts of tasks `ids`, which are about to be cancelled."""
    tasks, runs = table_of(model), cast(Table, model.Run.__table__)  # type: ignore[attr-defined]  # mapped imperatively
    current = select(
        tasks.c.run_id,
        tasks.c.id,
        tasks.c.attempt,
        literal_column("'cancelled'"),
        tasks.c.claimed_by,
        tasks.c.started_at,
        tasks.c.lease_expires_at,
    ).where(tasks.c.id.in_(ids), text(ACTIVE), tasks.c.started_at.is_not(None))
    names = ["id", "task_id", "attempt", "state", "worker", "started_at", "lease_expires_at"]
    return insert(runs).from_select(names, current)


@memo
def outcome(model: Model) -> Select[Any]:
    """State, attempt, name, result and error of task `task_id`."""
    table = table_of(model)
    return select(
        table.c.id, table.c.state, table.c.attempt, table.c.name, table.c.result, table.c.error
    ).where(table.c.id == bindparam("task_id"))
