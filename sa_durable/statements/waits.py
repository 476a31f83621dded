"""Waits: which tasks sleep for which events. The run's side; statements.wake is the workers' side.

A run first commits its waits, then checks once more for the event, then sleeps. So either the transaction
that settles the event sees the wait, or the run sees the event: neither locks the other. A run that waits for
several events and sleeps although some are settled deletes the waits for those itself (`narrow`), since no
worker would.

Locks are taken in the order task, then its waits. Several waits are locked only if they are free.
`mark_settled` in statements.wake is the exception: it waits for locked waits, and locks no task.
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
    """Make claim `task_id` with `held_token` wait, as `step`, for the events `names` of `queues` (arrays).

    `timeout` is the longest wait. A wait that exists keeps its end. Returns one row: whether the claim is
    still held (`held`), and whether the step's time has passed (`over`).

    The lock makes the check of the token safe, as in checkpoints.save: a transaction that ends the task waits
    for this one, or this statement sees that it ended. ON CONFLICT DO NOTHING, because an update would lock
    several waits in an order of its own and could deadlock with `mark_settled`.
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
    """Lock the task of claim `task_id` with `held_token`, if it is still held."""
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
    """Make claim `task_id` with `held_token` wait, as `step`, only for the events `names` (an array).

    Waits that are locked because their event is being settled stay: they don't keep the task asleep. Returns
    whether any waits are left.
    """
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
    """Put the task of claim `task_id` with `held_token` to sleep until an event or its first timeout.

    Returns the task's id.
    """
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
    """Delete the waits of task `id` in `step`.

    Waits that are locked because their event is being settled stay: statements.wake.forget_idle deletes them
    later.
    """
    table = table_of(model, Role.WAITS)
    mine = (
        table.c.task_id == bindparam("id", type_=Uuid()),
        table.c.step == bindparam("step", type_=Text()),
    )
    free = select(table.c.event_name).where(*mine).with_for_update(skip_locked=True)
    return delete(table).where(*mine, table.c.event_name == any_(func.array(free.scalar_subquery())))


@cached_statement
def outcomes(model: Model) -> Select[Any]:
    """Return state, result and error (JSON texts) of the tasks `ids`."""
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
    """Make the end of task `task_id` be announced. Returns its id, unless it has ended."""
    table = table_of(model)
    return (
        update(table)
        .where(table.c.id == bindparam("task_id", type_=Uuid()), text(f"NOT ({TERMINAL})"))
        .values(awaited=True)
        .returning(table.c.id)
    )


@cached_statement
def touch(model: Model, *, wait: bool) -> ReturningUpdate[Any]:
    """Write the row of claim `task_id` with `held_token` unchanged.

    Without `wait`, writes nothing if the row is locked. A cascade at REPEATABLE READ can't see the child that
    this transaction spawns. After this write it fails and is retried.
    """
    table = table_of(model)
    own = claim_is_held(table)
    if not wait:
        free = select(table.c.id).where(own).with_for_update(key_share=True, skip_locked=True)
        own = table.c.id == any_(func.array(free.scalar_subquery()))
    return update(table).where(own).values(token=table.c.token).returning(table.c.id)
