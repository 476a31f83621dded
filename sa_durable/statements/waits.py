"""Waits: which tasks sleep for which events. Here is the run's side; workers wake it by statements.wake.

A run first commits its waits and then looks for the event a last time before it sleeps. So whoever settles an event
either sees the wait, or the event was there to be seen by the waiter: neither needs a lock on the other. Who waits for
several sleeps although some are there: it takes their waits back (`narrow`), since nobody else would.

Locks are taken in the order task, then its waits; where several waits are locked, only free ones (`settle` in
statements.waking is the one that waits, and it locks no task).
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Delete,
    Interval,
    Select,
    Table,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    delete,
    func,
    select,
    text,
    true,
    union_all,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningUpdate

from ..models.names import Role
from ..models.predicates import TERMINAL
from . import clock
from .arrays import array
from .cache import cached_statement
from .fencing import claim_is_held
from .plan_shape import any_of, opaque_array
from .runs import suspend
from .tables import Model, table_of


@cached_statement
def register(model: Model) -> Select[Any]:
    """Have the claim `task_id` with `held_token` wait, as `step`, for the events `names` of the queues `queues`
    (arrays), for `timeout`. A wait that is there keeps its end. Returns one row: whether the claim stands (`held`), and
    whether the step's time is over.

    The lock makes the fence real, as in checkpoints.save: who ends the task waits for us, or we see that it ended.
    DO NOTHING, since an update would lock several waits in an order of its own, against `settle`.
    """
    table, tasks = table_of(model, Role.WAITS), table_of(model)
    task_id: ColumnElement[Any] = bindparam("task_id", type_=Uuid())
    step: ColumnElement[Any] = sql_cast(bindparam("step", type_=Text()), Text())
    claim = _claim(tasks)
    events = (
        func.unnest(opaque_array("names", Text()), opaque_array("queues", Text()))
        .table_valued(column("name", Text()), column("queue", Text()))
        .render_derived(name="events")
    )
    timeout: ColumnElement[Any] = sql_cast(bindparam("timeout", type_=Interval()), Interval())
    rows = select(
        claim.c.id, step, events.c.name, events.c.queue, clock.after(timeout), clock.now()
    ).select_from(claim.join(events, true()))
    names = ["task_id", "step", "event_name", "event_queue", "timeout_at", "created_at"]
    added = (
        insert(table)
        .from_select(names, rows, include_defaults=False)
        .on_conflict_do_nothing(index_elements=[table.c.task_id, table.c.step, table.c.event_name])
        .returning(table.c.timeout_at)
        .cte("added")
    )
    before = select(table.c.timeout_at).where(table.c.task_id == task_id, table.c.step == step)
    ends = union_all(before, select(added.c.timeout_at)).subquery("ends")
    registered = select(
        select(claim.c.id).exists().label("held"),
        func.coalesce(func.bool_or(ends.c.timeout_at <= clock.now()), False, type_=Boolean()).label("over"),
    ).select_from(ends)
    return cast("Select[Any]", registered)


def _claim(tasks: Table) -> CTE:
    """The claim `task_id` with `held_token`, locked, if it stands."""
    return (
        select(tasks.c.id)
        .where(
            claim_is_held(tasks),
        )
        .with_for_update(key_share=True)
        .cte("claim")
    )


@cached_statement
def narrow(model: Model) -> Select[Any]:
    """Have the claim `task_id` with `held_token` wait, as `step`, for no other events than `names` (an array). Waits that are
    just being settled stay: they are no hindrance then. Returns whether any are left."""
    table = table_of(model, Role.WAITS)
    mine = (
        table.c.task_id == bindparam("task_id", type_=Uuid()),
        table.c.step == bindparam("step", type_=Text()),
    )
    others = (
        select(table.c.event_name)
        .where(
            *mine,
            table.c.task_id.in_(select(_claim(table_of(model)).c.id)),
            text(f"NOT {table.name}.settled"),
            table.c.event_name.not_in(select(func.unnest(array("names", Text())))),
        )
        .with_for_update(skip_locked=True)
    )
    gone = (
        delete(table)
        .where(*mine, table.c.event_name == any_(func.array(others.scalar_subquery())))
        .returning(table.c.event_name)
        .cte("gone")
    )
    before = select(func.count()).select_from(table).where(*mine).scalar_subquery()
    return select((before > select(func.count()).select_from(gone).scalar_subquery()).label("waits"))


@cached_statement
def sleep(model: Model) -> ReturningUpdate[Any]:
    """Put the claim `task_id` with `held_token` to sleep until it is woken, or the first of its waits' times is over.
    Returns its id."""
    table, waits = table_of(model), table_of(model, Role.WAITS)
    wake = (
        select(func.min(waits.c.timeout_at))
        .where(waits.c.task_id == table.c.id, text(f"NOT {waits.name}.settled"))
        .correlate(table)
        .scalar_subquery()
    )
    return suspend(table, wake)


@cached_statement
def forget(model: Model) -> Delete:
    """Task `id` no longer waits in `step`. Waits that are just being settled stay: statements.wake.forget_idle has them then."""
    table = table_of(model, Role.WAITS)
    mine = (
        table.c.task_id == bindparam("id", type_=Uuid()),
        table.c.step == bindparam("step", type_=Text()),
    )
    free = select(table.c.event_name).where(*mine).with_for_update(skip_locked=True)
    return delete(table).where(*mine, table.c.event_name == any_(func.array(free.scalar_subquery())))


@cached_statement
def outcomes(model: Model) -> Select[Any]:
    """State, result and error (JSON texts) of the tasks `ids`."""
    table = table_of(model)
    return select(
        table.c.id,
        table.c.name,
        table.c.state,
        sql_cast(table.c.result, Text()).label("result"),
        sql_cast(table.c.error, Text()).label("error"),
        table.c.parent_id,
        table.c.awaited,
    ).where(table.c.id == any_of("ids", Uuid()))


@cached_statement
def mark_awaited(model: Model) -> ReturningUpdate[Any]:
    """Have the end of task `id` announced. Returns its id, unless it has ended."""
    table = table_of(model)
    return (
        update(table)
        .where(table.c.id == bindparam("task_id", type_=Uuid()), text(f"NOT ({TERMINAL})"))
        .values(awaited=True)
        .returning(table.c.id)
    )


@cached_statement
def touch(model: Model, *, wait: bool) -> ReturningUpdate[Any]:
    """Write the row of claim `task_id` with `held_token` as it is; or no row, without `wait`, if somebody has it locked. A
    cascade at REPEATABLE READ, which couldn't see the child that this transaction spawns, then fails and is run again."""
    table = table_of(model)
    own = claim_is_held(table)
    if not wait:
        free = select(table.c.id).where(own).with_for_update(key_share=True, skip_locked=True)
        own = table.c.id == any_(func.array(free.scalar_subquery()))
    return update(table).where(own).values(token=table.c.token).returning(table.c.id)
