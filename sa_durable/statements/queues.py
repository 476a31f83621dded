"""Statements on the row of a queue in `durable_queues`: whether it is paused, and its retention.

Idle workers insert and update the same row (statements.notifications). So rows are inserted with ON CONFLICT
only. All statements are ORM-enabled: objects that the caller's session has loaded show the new values.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Update, null, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from . import clock
from .cache import cached_statement
from .tables import Model


@cached_statement
def pause(model: Model) -> ReturningInsert[Any]:
    """Pause a queue. Returns its row; no row if it was paused already, which keeps its time."""
    new = insert(model.Queue).values(name=model.__queue__, paused_at=clock.now())
    return _upsert(model, new, "paused_at").returning(model.Queue)


@cached_statement
def resume(model: Model) -> ReturningUpdate[Any]:
    """Resume a queue. Returns its row; no row if it wasn't paused."""
    queue = model.Queue
    return _update(model).where(queue.paused_at.is_not(None)).values(paused_at=null()).returning(queue)


def set_retention(model: Model, retention: timedelta) -> ReturningInsert[Any]:
    """Set the retention of a queue. Returns its row; no row if it had this retention.

    The value is part of the statement: with parameters, SQLAlchemy makes a bulk insert of it, which goes to
    the engine of Queue, whatever the caller asks for.
    """
    new = insert(model.Queue).values(name=model.__queue__, retention=retention)
    return _upsert(model, new, "retention").returning(model.Queue)


@cached_statement
def clear_retention(model: Model) -> ReturningUpdate[Any]:
    """Remove the retention of a queue. Returns its row; no row if it had none."""
    queue = model.Queue
    return _update(model).where(queue.retention.is_not(None)).values(retention=null()).returning(queue)


def _update(model: Model) -> Update:
    return update(model.Queue).where(model.Queue.name == model.__queue__)


def _upsert(model: Model, new: Insert, column: str) -> Insert:
    """Insert the row, or set `column` in the row that is there, if that changes something."""
    old = getattr(model.Queue, column)
    differs = old.is_(None) if column == "paused_at" else old.is_distinct_from(new.excluded[column])
    statement = new.on_conflict_do_update(
        index_elements=["name"], set_={column: new.excluded[column]}, where=differs
    )
    return statement.execution_options(populate_existing=True)
