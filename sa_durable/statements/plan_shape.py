"""Parameters that the planner doesn't see (docs/decisions/0008).

A queue's tables change faster than their statistics do: a table that was analysed while it was idle, or never, may hold
100,000 tasks a second later. So no plan may hang on what the planner believes to be there. These make it assume the
same few rows whatever there is, for which an index is always right.
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
    """One of the array in parameter `name`, on the right side of `==`.

    A plain `= ANY (array)` of 500 elements on a table without statistics is planned as a sequential scan that compares
    each row with each element: 15 seconds for 100,000 rows, where the index answers in 0.4 ms (measured).
    """
    return any_(func.array(select(func.unnest(array(name, type_))).scalar_subquery()))


def opaque_array(name: str, type_: Any) -> ScalarSelect[Any]:
    """The array in parameter `name`, for unnest.

    An array that the planner sees has as many elements as it has: so plans for it look cheaper than the one for
    any array, and PostgreSQL makes one anew for each execution, 0.5 ms for a claim that takes 0.25 (measured).
    """
    return select(array(name, type_)).scalar_subquery()


def opaque_limit(name: str = "limit") -> ScalarSelect[Any]:
    """As many rows as parameter `name` says, for `limit`.

    With a plain LIMIT of 500 where the planner expects no more than that, it reads and sorts all there is, for each
    batch again: 60 ms with 50,000 rows, where the index that has the order gives the first 500 in 0.1 ms (measured).
    """
    return select(bindparam(name, type_=Integer())).scalar_subquery()


ONE: ColumnElement[int] = literal_column("1", Integer())
"""For `limit`, where it is always 1. As a parameter it would be a tenth of all rows in a plan for any number, which then
looks so much dearer than one for 1 that PostgreSQL plans each execution anew."""


def exists_by_index(rows: Select[Any]) -> ColumnElement[bool]:
    """Whether there are any `rows`, which an index finds.

    An EXISTS may be answered by reading the whole table once, if many rows ask it: 150 ms for a batch of 1000
    completions with 110,000 waits, of which they had none, instead of 30 (measured).
    """
    return rows.limit(ONE).scalar_subquery().is_not(None)


def discard_plans() -> Executable:
    """Have PostgreSQL forget the plans of this connection's prepared statements; not the statements."""
    return _PLAN_ANEW


_PLAN_ANEW = text("DISCARD PLANS")
