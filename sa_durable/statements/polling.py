"""What there is to do in several queues, in one statement: all that an idle worker sends.

An index answers each part at once, however many tasks wait.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Integer,
    Text,
    column,
    func,
    literal_column,
    select,
    text,
    true,
    union_all,
)

from ..models.names import Role
from ..models.predicates import LIMITED, PENDING, RUNNING, SLEEPING
from . import clock
from .cache import cached_statement
from .claims import not_overdue, paused
from .plan_shape import ONE, exists_by_index, opaque_array
from .tables import Model, table_of


def names_of(number: int) -> str:
    """Return the name of the parameter with the task names that can be claimed from queue `number`."""
    return f"names_{number}"


@cached_statement
def due(models: tuple[Model, ...]) -> CompoundSelect[Any]:
    """Return a row for each queue, by its `number`: what there is to claim or to wake.

    `ready`: whether there is a task to claim. `next_due`: in how long the first sleeper is due, an interval,
    negative if the sleeper is overdue, or NULL. `unsettled`: whether there are events to decide. `settled`:
    whether there are waits whose event is settled. `waiting`: whether there are other waits.
    """
    return _for_each(models, _due)


@cached_statement
def expired(models: tuple[Model, ...]) -> CompoundSelect[Any]:
    """Return a row for each queue, by its `number`: which leases and deadlines have passed.

    `expired`: whether a lease has expired, for which it reads all running tasks. `next_overdue`: in how long
    the first task is past its deadline, as `next_due` in `due`.
    """
    return _for_each(models, _expired)


def _for_each(models: tuple[Model, ...], columns: Any) -> CompoundSelect[Any]:
    queries = [
        select(literal_column(str(number), Integer()).label("number"), *columns(number, model))
        for number, model in enumerate(models)
    ]
    return union_all(*queries)


def _due(number: int, model: Model) -> list[ColumnElement[Any]]:
    # Each subquery has an order, which only its index has. Without one, the planner would read the table: it
    # expects many such rows, and to find one of them soon.
    event, wait = table_of(model, Role.EVENTS), table_of(model, Role.WAITS)
    ready = table_of(model).alias("ready")
    known = (
        func.unnest(opaque_array(names_of(number), Text()))
        .table_valued(column("name", Text()))
        .render_derived(name="known")
    )
    # The first task of each name, as a claim does, so that tasks with other names cost nothing.
    first = (
        select(ready.c.id)
        .where(text(f"ready.{PENDING}"), ready.c.name == known.c.name, not_overdue(ready))
        .order_by(ready.c.priority, ready.c.available_at, ready.c.id)
        .limit(ONE)
        .lateral("first")
    )
    claimable = select(first.c.id).select_from(known.join(first, true())).where(~paused(model))
    return [
        exists_by_index(claimable).label("ready"),
        _until_first(model, "available_at", SLEEPING).label("next_due"),
        exists_by_index(select(event.c.id).where(text("settled_at IS NULL")).order_by(event.c.id)).label(
            "unsettled"
        ),
        exists_by_index(select(wait.c.task_id).where(text("settled")).order_by(wait.c.task_id)).label(
            "settled"
        ),
        exists_by_index(
            select(wait.c.task_id).where(text("NOT settled")).order_by(wait.c.event_queue, wait.c.event_name)
        ).label("waiting"),
    ]


def _expired(_: int, model: Model) -> list[ColumnElement[Any]]:
    running = table_of(model).alias("running")
    expired = (
        select(running.c.id)
        .where(text(f"running.{RUNNING}"), running.c.lease_expires_at < clock.now())
        .order_by(running.c.id)
    )
    return [
        exists_by_index(expired).label("expired"),
        _until_first(model, "cancel_at", LIMITED).label("next_overdue"),
    ]


def _until_first(model: Model, column: str, predicate: str) -> ColumnElement[Any]:
    table = table_of(model)
    first = table.c[column]
    at = select(first).where(text(predicate), first.is_not(None)).order_by(first).limit(ONE)
    return at.scalar_subquery() - clock.now()
