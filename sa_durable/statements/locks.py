"""Advisory locks, transaction level only: the one place that takes any, for engines that have none."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, column, func, literal, select

from .arrays import array
from .cache import cached_statement


@cached_statement
def lock_name(queue: str) -> Select[Any]:
    """Wait until nobody else decides which row of event `name` is the event, and keep others from it until commit."""
    return select(func.pg_advisory_xact_lock(_key(queue, bindparam("name", type_=Text()))))


@cached_statement
def try_lock_names(queue: str) -> Select[Any]:
    """Those of `names` (an array of distinct ones) that nobody else is deciding; they are ours until commit. Never
    waits: several names can't deadlock."""
    names = func.unnest(array("names", Text())).table_valued(column("name", Text())).render_derived()
    return select(names.c.name).where(func.pg_try_advisory_xact_lock(_key(queue, names.c.name)))


def _key(queue: str, name: ColumnElement[Any]) -> ColumnElement[Any]:
    # Two names with one hash wait for each other, and that is all.
    return func.hashtextextended(literal(f"sa_durable:{queue}:", Text()) + name, literal(0))
