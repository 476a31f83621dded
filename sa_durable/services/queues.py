"""Operate a queue: pause it, resume it, set its retention.

The row of a queue is shared with idle workers, which insert and update it to enable notifications. These
functions wait for a worker's transaction (a few milliseconds), and never fail with a unique violation.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from .. import policy
from ..statements import queues as stmt
from .execute import ensure_schema, execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def pause(session: Session, model: Model) -> bool:
    """Pause a queue: see Durable.pause."""
    ensure_schema(session, model)
    return execute(session, stmt.pause(model), model=model).first() is not None


def resume(session: Session, model: Model) -> bool:
    """Resume a queue: see Durable.resume."""
    ensure_schema(session, model)
    return execute(session, stmt.resume(model), model=model).first() is not None


def set_retention(session: Session, model: Model, retention: timedelta | None) -> bool:
    """Set or clear the retention of a queue: see Durable.set_retention."""
    if retention is not None:
        policy.check_duration("retention", retention, zero=False)
    ensure_schema(session, model)
    if retention is None:
        return execute(session, stmt.clear_retention(model), model=model).first() is not None
    parameters = {"retention": retention}
    return execute(session, stmt.set_retention(model), parameters, model=model).first() is not None
