"""Conditions that fence off a worker whose claim is no longer valid.

Every claim raises the token of its task, and so does everything that ends a claim. So a claim, named by task
id and token, is still held while its task is running under the same token. Every statement that writes for a
worker has this condition.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    ScalarSelect,
    Table,
    TableValuedAlias,
    Uuid,
    and_,
    bindparam,
    column,
    func,
    select,
    text,
    true,
)
from sqlalchemy.sql.selectable import LateralFromClause, NamedFromClause

from ..models.predicates import RUNNING
from .plan_shape import opaque_array


def is_held(
    tasks: NamedFromClause, task_id: ColumnElement[Any], token: ColumnElement[Any]
) -> ColumnElement[bool]:
    """Return the condition that the claim of `task_id` with `token` is still held."""
    running = RUNNING if isinstance(tasks, Table) else f"{tasks.name}.{RUNNING}"
    return and_(tasks.c.id == task_id, tasks.c.token == token, text(running))


def claim_is_held(
    tasks: Table, parameters: tuple[str, str] = ("task_id", "held_token")
) -> ColumnElement[bool]:
    """Return the condition that the claim is still held whose task id and token are two parameters."""
    task_id, token = parameters
    return is_held(tasks, bindparam(task_id, type_=Uuid()), bindparam(token, type_=BigInteger()))


def claim_arrays() -> TableValuedAlias:
    """Return the claims of the arrays `ids` and `tokens`, as a table."""
    return (
        func.unnest(opaque_array("ids", Uuid()), opaque_array("tokens", BigInteger()))
        .table_valued(column("id", Uuid()), column("token", BigInteger()))
        .render_derived(name="held")
    )


def lock_held(tasks: Table, claims: FromClause, *columns: str, wait: bool = False) -> LateralFromClause:
    """Lock the tasks of `claims` that are still held, and return their ids and `columns`, in order.

    Passes over rows that another transaction has locked, or, with `wait`, waits for them.

    LateralFromClause, so that PostgreSQL finds each row by its id. In a join, a planner that believes that
    nothing is running reads everything that is: 7 ms for a completion with 10,000 running tasks instead of
    0.1 ms (measured).
    """
    row = tasks.alias("row")
    return (
        select(row.c.id, *(row.c[name] for name in columns))
        .where(is_held(row, claims.c.id, claims.c.token))
        .with_for_update(key_share=True, skip_locked=not wait)
        .lateral("held_row")
    )


def lock_claims(tasks: Table) -> ScalarSelect[Any]:
    """Lock the tasks of `claim_arrays` that are still held, without waiting, and return their ids."""
    claims = claim_arrays()
    row = lock_held(tasks, claims)
    return select(row.c.id).select_from(claims.join(row, true())).scalar_subquery()
