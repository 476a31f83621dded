"""Operate a queue: pause it, resume it, set its retention.

The row of a queue is shared with idle workers, which insert and update it to enable notifications. These
functions wait for a worker's transaction (a few milliseconds), and never fail with a unique violation.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, class_mapper

from .. import policy
from ..statements import queues as stmt
from .execute import ensure_schema, typed_error

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def pause(session: Session, model: Model) -> bool:
    """Pause a queue: see Durable.pause."""
    return _changes(session, model, stmt.pause(model))


def resume(session: Session, model: Model) -> bool:
    """Resume a queue: see Durable.resume."""
    return _changes(session, model, stmt.resume(model))


def set_retention(session: Session, model: Model, retention: timedelta | None) -> bool:
    """Set or clear the retention of a queue: see Durable.set_retention."""
    if retention is None:
        return _changes(session, model, stmt.clear_retention(model))
    policy.check_duration("retention", retention, zero=False)
    return _changes(session, model, stmt.set_retention(model, retention))


def _changes(session: Session, model: Model, statement: Executable) -> bool:
    """Execute a statement on the row of a queue, and return whether it changed the row.

    SQLAlchemy chooses the engine of an ORM statement by the statement's own model, here Queue. The row
    belongs to where the tasks are, so the engine of the task model is passed.
    """
    ensure_schema(session, model)
    bind = session.get_bind(mapper=class_mapper(model))
    try:
        return session.execute(statement, bind_arguments={"bind": bind}).first() is not None
    except DBAPIError as error:
        if known := typed_error(error):
            raise known from error
        raise
