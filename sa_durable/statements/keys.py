"""Find the holder of a key, and free the key or update the holder.

Reads are Core statements, for speed. Changes of a holder are rare, and go through the ORM, so that loaded
objects see them.
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
    """Return the task that holds `key`, and whether its stored params equal `params` (`params_match`).

    Params are compared as jsonb: the order of keys doesn't matter, and 1 equals 1.0. `expired` says whether
    the holder's `key_ttl` has passed.
    """
    table = table_of(model)
    return select(
        *_holder_columns(table),
        (table.c.params == sql_cast(bindparam("params", type_=Text()), JSONB)).label("params_match"),
    ).where(table.c.idempotency_key == bindparam("key", type_=KEY), text(HELD))


@cached_statement
def holders(model: Model) -> Select[Any]:
    """Return, like `holder`, the holders of the arrays `keys` and `params` (statements.arrays) of one length.

    `position` is the index of the key in the arrays, from 1.
    """
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
    # The key of an active holder never expires, only of a terminal one.
    """Return the condition that the holder's `key_ttl` has passed."""
    return (func.coalesce(table.c.key_expires_at <= clock.now(), False)) & literal_column(
        f"({TERMINAL})", Boolean()
    )


@cached_statement
def held_task(model: Model) -> Select[Any]:
    """Return the task that holds `key` and whose `key_ttl` hasn't passed."""
    table = table_of(model)
    holder_id = select(table.c.id).where(
        table.c.idempotency_key == bindparam("key", type_=KEY), text(HELD), ~_expired(table)
    )
    # A subquery, because the entity may be loaded with joins, in which the predicates would be ambiguous.
    return select(model).where(model.id == holder_id.scalar_subquery())


def release_expired(model: Model, task_id: UUID) -> Update:
    """Free the key of a task whose `key_ttl` has passed.

    Checks that again, because another transaction may have freed the key meanwhile.
    """
    return (
        update(model).where(model.id == task_id, text(HELD), _expired(table_of(model))).values(key_hold=None)
    )


def release_key(model: Model, key: str) -> ReturningUpdate[Any]:
    """Free `key`, unless its `key_ttl` has passed anyway. Returns the holder's id."""
    held = (model.idempotency_key == key, text(HELD), ~_expired(table_of(model)))
    return update(model).where(*held).values(key_hold=None).returning(model.id)


def release_held(model: Model, task_id: UUID) -> Update:
    """Free the key of a task, whatever its hold."""
    return update(model).where(model.id == task_id, text(HELD)).values(key_hold=None)


def update_waiting(
    model: Model, values: dict[str, Any], own: dict[str, Any], *, notify: bool
) -> ReturningUpdate[Any]:
    """Update params, headers, priority, schedule and limits of task `id` of `values` before its start.

    With `notify`, notifies idle workers. Through the ORM, so that loaded objects see it.
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
    notification = [notify_workers_by_row(model, table_of(model))] if notify else []
    waiting = (model.first_started_at.is_(None), text(ACTIVE), text(HELD))
    return (
        update(model)
        .where(model.id == values["id"], *waiting)
        .values(new)
        .returning(model.state, *notification)
    )
