"""Expressions that hide parameters from PostgreSQL's planner (docs/decisions/0008).

The tables of a queue change faster than their statistics. A table that was analyzed while it was idle, or
never, may hold 100,000 tasks a second later. So no plan may depend on how many rows the planner expects.
These expressions make it assume the same few rows whatever the table holds. For few rows, it always chooses
an index.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Executable,
    Integer,
    ScalarSelect,
    Select,
    any_,
    bindparam,
    func,
    literal_column,
    select,
    text,
)

from .arrays import array


def any_of(name: str, type_: Any) -> ColumnElement[Any]:
    """Match any element of the array in parameter `name`. For the right side of `==`.

    Yields `id = ANY (ARRAY(SELECT unnest(:ids::uuid[])))`. A plain `= ANY (:ids)` of 500 elements on a table
    without statistics is planned as a sequential scan that compares each row with each element: 15 seconds
    for 100,000 rows, where the index answers in 0.4 ms (measured).
    """
    return any_(func.array(select(func.unnest(array(name, type_))).scalar_subquery()))


def opaque_array(name: str, type_: Any) -> ScalarSelect[Any]:
    """Hide the length of the array in parameter `name`. For `unnest`.

    Yields `(SELECT :ids::uuid[])`. For an array that the planner can see, it knows the number of elements. A
    plan for that number looks cheaper than the plan for any array, so PostgreSQL plans each execution again:
    0.5 ms for a claim that takes 0.25 ms (measured).
    """
    return select(array(name, type_)).scalar_subquery()


def opaque_limit(name: str = "limit") -> ScalarSelect[Any]:
    """Hide the value of parameter `name`. For `limit`.

    Yields `LIMIT (SELECT :limit)`. With a plain `LIMIT 500`, where the planner expects at most 500 rows, it
    reads and sorts all rows for every batch: 60 ms with 50,000 rows, where the index with that order returns
    the first 500 in 0.1 ms (measured).
    """
    return select(bindparam(name, type_=Integer())).scalar_subquery()


ONE: ColumnElement[int] = literal_column("1", Integer())
"""For a `limit` that is always 1.

Yields `LIMIT 1`. In a plan for any number, a parameter counts as a tenth of all rows. That plan looks so much
more expensive than a plan for 1 that PostgreSQL would plan each execution again.
"""


def exists_by_index(rows: Select[Any]) -> ColumnElement[bool]:
    """Return whether there are any `rows`, which an index finds.

    Yields `(SELECT id FROM ... LIMIT 1) IS NOT NULL`. PostgreSQL may answer a plain EXISTS by reading the
    whole table once, if many rows ask: 150 ms instead of 30 for a batch of 1000 completions with 110,000
    waits of other tasks (measured).
    """
    return rows.limit(ONE).scalar_subquery().is_not(None)


def discard_plans() -> Executable:
    """Discard the plans of this connection's prepared statements, but not the statements.

    Yields `DISCARD PLANS`.
    """
    return _DISCARD_PLANS


_DISCARD_PLANS = text("DISCARD PLANS")
