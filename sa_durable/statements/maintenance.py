"""Statements that depend on the clock: promote sleepers that are due."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, any_, func, select, text, update

from ..models.predicates import SLEEPING
from . import clock
from .cache import cached_statement
from .plan_shape import ONE, opaque_limit
from .tables import Model, table_of


@cached_statement
def promote(model: Model) -> Select[Any]:
    """Make up to `limit` due sleepers pending, those due first before others, passing over locked rows.

    Returns one row: how many (`woken`), and when the next sleeper is due (`next_due`, an interval from now,
    or NULL). `available_at` stays, so that tasks of one priority are claimed in the order in which they were
    due.
    """
    table = table_of(model)
    due = (
        select(table.c.id)
        .where(text(SLEEPING), table.c.available_at <= clock.now())
        .order_by(table.c.available_at)
        .limit(opaque_limit())
        .with_for_update(skip_locked=True)
    )
    woken = (
        update(table)
        .where(table.c.id == any_(func.array(due.scalar_subquery())))
        .values(state="pending")
        .returning(table.c.id)
        .cte("woken")
    )
    later = table.alias("later")
    next_due = (
        select(later.c.available_at)
        .where(text(f"later.{SLEEPING}"), later.c.available_at > clock.now())
        .order_by(later.c.available_at)
        .limit(ONE)  # min() would read all rows where the planner expects a single one
        .scalar_subquery()
    ) - clock.now()
    return select(
        select(func.count()).select_from(woken).scalar_subquery().label("woken"), next_due.label("next_due")
    )
