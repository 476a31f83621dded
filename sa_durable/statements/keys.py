"""Who holds a key, and what a spawn can do about it.

Reading is Core, for speed; what changes a holder is rare and goes through the ORM, so that loaded objects see it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Interval,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    column,
    func,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.dml import ReturningUpdate

from ..models.predicates import ACTIVE, HELD, TERMINAL
from ..models.tables import KEY, TIME
from . import arrays, clock
from .cache import cached_statement
from .notifications import notify_workers_by_row
from .spawn import DELAY, MAX_DURATION, RUN_AT, START_WITHIN, start, state_at
from .tables import Model, table_of


@cached_statement
def holder(model: Model) -> Select[Any]:
    """Who holds `key`: what a spawn tells its caller, and whether the stored params equal `params` (as jsonb: order
    of keys and 1 against 1.0 don't matter) and the key has outlived its time."""
    table = table_of(model)
    return select(
        *_holder_columns(table),
        (table.c.params == sql_cast(bindparam("params", type_=Text()), JSONB)).label("params_match"),
    ).where(table.c.idempotency_key == bindparam("key", type_=KEY), text(HELD))


@cached_statement
def holders(model: Model) -> Select[Any]:
    """As `holder`, for arrays (statements.arrays) of `keys` and `params` of the same length; with the position of each, from 1."""
    table = table_of(model)
    wanted = (
        func.unnest(arrays.array("keys", Text()), arrays.array("params", Text()))
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


@cached_statement
def held_task(model: Model) -> Select[Any]:
    """The task that holds `key` and has not outlived it."""
    table = table_of(model)
    holder_id = select(table.c.id).where(
        table.c.idempotency_key == bindparam("key", type_=KEY), text(HELD), ~_expired(table)
    )
    return select(model).where(
        model.id == holder_id.scalar_subquery()
    )  # apart: the entity may load others with it


def release_expired(model: Model, task_id: UUID) -> Update:
    """Free the key of a task, if its time is over (checked again: somebody else may have done it)."""
    return (
        update(model).where(model.id == task_id, text(HELD), _expired(table_of(model))).values(key_hold=None)
    )


def release_key(model: Model, key: str) -> ReturningUpdate[Any]:
    """Free `key`, unless its time is over anyway. Returns the holder's id."""
    held = (model.idempotency_key == key, text(HELD), ~_expired(table_of(model)))
    return update(model).where(*held).values(key_hold=None).returning(model.id)


def release_held(model: Model, task_id: UUID) -> Update:
    """Free the key of a task, by whatever it is held."""
    return update(model).where(model.id == task_id, text(HELD)).values(key_hold=None)


def update_waiting(
    model: Model, values: dict[str, Any], own: dict[str, Any], *, notify: bool
) -> ReturningUpdate[Any]:
    """Give task `id` of `values` other params, headers, priority, schedule and limits, if it has never started. With
    `notify`, idle workers are told.

    Through the ORM, so that loaded objects see it.
    """
    begins = start(
        sql_cast(bindparam(None, values[RUN_AT], type_=TIME), TIME),
        sql_cast(bindparam(None, values[DELAY], type_=Interval()), Interval()),
    )
    new: dict[str, Any] = {
        "params": sql_cast(bindparam(None, values["params"], type_=Text()), JSONB),
        "headers": sql_cast(bindparam(None, values["headers"], type_=Text()), JSONB),
        "priority": values["priority"],
        "available_at": begins,
        "state": state_at(begins),
        "max_duration": sql_cast(bindparam(None, values[MAX_DURATION], type_=Interval()), Interval()),
        "cancel_at": clock.after(
            sql_cast(bindparam(None, values[START_WITHIN], type_=Interval()), Interval()), begins
        ),
        **own,
    }
    told = [notify_workers_by_row(model, table_of(model))] if notify else []
    waiting = (model.first_started_at.is_(None), text(ACTIVE), text(HELD))
    return update(model).where(model.id == values["id"], *waiting).values(new).returning(model.state, *told)
