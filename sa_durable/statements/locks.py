"""Advisory locks on the names of events. All last until the end of the transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, column, func, literal, select

from .arrays import array
from .cache import cached_statement


@cached_statement
def lock_name(queue: str) -> Select[Any]:
    """Lock event `name`, waiting for other transactions that decide it."""
    return select(func.pg_advisory_xact_lock(_key(queue, bindparam("name", type_=Text()))))


@cached_statement
def try_lock_names(queue: str) -> Select[Any]:
    """Lock the events `names` (an array of distinct names) that are free, and return their names.

    It never waits, so transactions that lock several names can't deadlock.
    """
    names = func.unnest(array("names", Text())).table_valued(column("name", Text())).render_derived()
    return select(names.c.name).where(func.pg_try_advisory_xact_lock(_key(queue, names.c.name)))


def _key(queue: str, name: ColumnElement[Any]) -> ColumnElement[Any]:
    # Two names with the same hash wait for each other. That is harmless.
    return func.hashtextextended(literal(f"sa_durable:{queue}:", Text()) + name, literal(0))
