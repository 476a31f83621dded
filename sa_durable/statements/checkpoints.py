"""What steps left behind. The primary key (task_id, name) serves both statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import BigInteger, ColumnElement, Select, Table, Text, Uuid, bindparam, select, text
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import ReturningInsert

from ..models.predicates import RUNNING
from . import clock
from .cache import memo
from .plan_shape import any_of
from .runs import wake_time
from .spawn import table_of

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def _table(model: Model) -> Table:
    return cast(Table, model.Checkpoint.__table__)  # type: ignore[attr-defined]  # mapped imperatively


@memo
def load(model: Model) -> Select[Any]:
    """Every checkpoint of the tasks `ids`."""
    table = _table(model)
    return select(table.c.task_id, table.c.name, table.c.value).where(
        table.c.task_id == any_of("ids", Uuid())
    )


@memo
def find(model: Model) -> Select[Any]:
    """The value of checkpoint `name` of task `id`."""
    table = _table(model)
    return select(table.c.value).where(
        table.c.task_id == bindparam("id", type_=Uuid()), table.c.name == bindparam("name", type_=Text())
    )


@memo
def save(model: Model) -> ReturningInsert[Any]:
    """Store `value` (JSON text) as checkpoint `name` of the claim `id` with `token`, unless there is one of that name.
    Returns the value as PostgreSQL keeps it; no row: the claim is over, or the name is taken."""
    return _save(model, sql_cast(bindparam("value", type_=Text()), JSONB))


@memo
def save_wake_time(model: Model) -> ReturningInsert[Any]:
    """As `save`; the value is when a sleep that starts now ends, by the database's clock."""
    return _save(model, wake_time())


def _save(model: Model, value: ColumnElement[Any]) -> ReturningInsert[Any]:
    from_, into = table_of(model), _table(model)
    # The lock makes the fence real: a sweep that takes the task away waits for us, or we see the token it raised.
    # NO KEY UPDATE and not SHARE: concurrent steps of a task take turns and make no multixacts.
    claim = (
        select(from_.c.id, bindparam("name", type_=Text()), value, from_.c.attempt, clock.now())
        .where(
            from_.c.id == bindparam("id", type_=Uuid()),
            from_.c.token == bindparam("token", type_=BigInteger()),
            text(RUNNING),
        )
        .with_for_update(key_share=True)
    )
    return (
        insert(into)
        .from_select(["task_id", "name", "value", "attempt", "created_at"], claim)
        .on_conflict_do_nothing(index_elements=[into.c.task_id, into.c.name])
        .returning(into.c.value)
    )
