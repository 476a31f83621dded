"""What there is to do in several queues, in one statement: all that an idle worker sends. Each part is found at once by
an index, whatever waits there."""

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
    """The parameter with the names that can be claimed from queue `number`."""
    return f"names_{number}"


@cached_statement
def due(models: tuple[Model, ...]) -> CompoundSelect[Any]:
    """A row for each queue, by its `number`: whether there is something to claim (`ready`), in how long the first sleeper
    is due (`next_due`, an interval, negative if it is overdue; NULL: there is none), whether there are events to settle
    (`unsettled`), waits whose event is there (`settled`), and other waits (`waiting`)."""
    return _for_each(models, _due)


@cached_statement
def expired(models: tuple[Model, ...]) -> CompoundSelect[Any]:
    """As `due`: whether a lease is over (`expired`), which reads all that is running, and in how long the first task's time
    is over (`next_overdue`, as `next_due`)."""
    return _for_each(models, _ended)


def _for_each(models: tuple[Model, ...], look: Any) -> CompoundSelect[Any]:
    looks = [
        select(literal_column(str(number), Integer()).label("number"), *look(number, model))
        for number, model in enumerate(models)
    ]
    return union_all(*looks)


def _due(number: int, model: Model) -> list[ColumnElement[Any]]:
    # In an order, which only the index has: the planner expects many such rows, and to meet one soon in the table.
    event, wait = table_of(model, Role.EVENTS), table_of(model, Role.WAITS)
    ready = table_of(model).alias("ready")
    known = (
        func.unnest(opaque_array(names_of(number), Text()))
        .table_valued(column("name", Text()))
        .render_derived(name="known")
    )
    first = (  # of each name, as a claim does: rows of other names cost nothing
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


def _ended(_: int, model: Model) -> list[ColumnElement[Any]]:
    running = table_of(model).alias("running")
    over = (
        select(running.c.id)
        .where(text(f"running.{RUNNING}"), running.c.lease_expires_at < clock.now())
        .order_by(running.c.id)
    )
    return [
        exists_by_index(over).label("expired"),
        _until_first(model, "cancel_at", LIMITED).label("next_overdue"),
    ]


def _until_first(model: Model, column: str, predicate: str) -> ColumnElement[Any]:
    table = table_of(model)
    first = table.c[column]
    at = select(first).where(text(predicate), first.is_not(None)).order_by(first).limit(ONE)
    return at.scalar_subquery() - clock.now()
