"""What steps left behind. The primary key (task_id, name) serves both statements."""

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
    """Every checkpoint of the tasks `ids`."""
    table = table_of(model, Role.CHECKPOINTS)
    return select(table.c.task_id, table.c.name, table.c.value).where(
        table.c.task_id == any_of("ids", Uuid())
    )


@cached_statement
def find(model: Model) -> Select[Any]:
    """The value of checkpoint `name` of task `id`."""
    table = table_of(model, Role.CHECKPOINTS)
    return select(table.c.value).where(
        table.c.task_id == bindparam("id", type_=Uuid()), table.c.name == bindparam("name", type_=Text())
    )


@cached_statement
def save(model: Model) -> ReturningInsert[Any]:
    """Store `value` (JSON text) as checkpoint `name` of the claim `id` with `token`, unless there is one of that name.
    Returns the value as PostgreSQL keeps it; no row: the claim is over, or the name is taken."""
    return _save(model, sql_cast(bindparam("value", type_=Text()), JSONB))


@cached_statement
def save_wake_time(model: Model) -> ReturningInsert[Any]:
    """As `save`; the value is when a sleep that starts now ends, by the database's clock."""
    return _save(model, wake_time())


def _save(model: Model, value: ColumnElement[Any]) -> ReturningInsert[Any]:
    from_, into = table_of(model), table_of(model, Role.CHECKPOINTS)
    # The lock makes the fence real: a sweep that takes the task away waits for us, or we see the token it raised.
    # NO KEY UPDATE and not SHARE: concurrent steps of a task take turns and make no multixacts.
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
