"""Checkpoints: the saved values of steps. The primary key (task_id, name) serves all statements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, Text, Uuid, bindparam, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.names import Role
from . import clock
from .cache import cached_statement
from .fencing import claim_is_held
from .plan_shape import any_of
from .runs import wake_time
from .tables import Model, table_of


@cached_statement
def load(model: Model) -> Select[Any]:
    """Return every checkpoint of the tasks `ids`."""
    table = table_of(model, Role.CHECKPOINTS)
    return select(table.c.task_id, table.c.name, table.c.value).where(
        table.c.task_id == any_of("ids", Uuid())
    )


@cached_statement
def find(model: Model) -> Select[Any]:
    """Return the value of checkpoint `name` of task `id`."""
    table = table_of(model, Role.CHECKPOINTS)
    return select(table.c.value).where(
        table.c.task_id == bindparam("id", type_=Uuid()), table.c.name == bindparam("name", type_=Text())
    )


@cached_statement
def save(model: Model) -> ReturningInsert[Any]:
    """Save `value` (JSON text) as checkpoint `name` of claim `id` with `token`, unless the name is taken.

    Returns the value as PostgreSQL stores it. No row: the claim is no longer held, or the name is taken.
    """
    return _save(model, sql_cast(bindparam("value", type_=Text()), JSONB))


@cached_statement
def save_wake_time(model: Model) -> ReturningInsert[Any]:
    """Save as checkpoint `name`, like `save`, the time when a sleep ends that starts now.

    The sleep lasts `delay`, or ends at `until`, by the database's clock.
    """
    return _save(model, wake_time())


def _save(model: Model, value: ColumnElement[Any]) -> ReturningInsert[Any]:
    from_, into = table_of(model), table_of(model, Role.CHECKPOINTS)
    # The lock makes the check of the token safe: a sweep that ends the claim waits for this transaction, or
    # this statement sees the token that the sweep raised. The lock is NO KEY UPDATE and not SHARE, so that
    # concurrent steps of a task take turns and make no multixacts.
    claim = (
        select(from_.c.id, bindparam("name", type_=Text()), value, from_.c.attempt, clock.now())
        .where(
            claim_is_held(from_, ("id", "token")),
        )
        .with_for_update(key_share=True)
    )
    return (
        insert(into)
        .from_select(["task_id", "name", "value", "attempt", "created_at"], claim)
        .on_conflict_do_nothing(index_elements=[into.c.task_id, into.c.name])
        .returning(into.c.value)
    )
