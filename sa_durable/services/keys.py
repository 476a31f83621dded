"""Looking up and freeing idempotency keys."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy.orm import Session

from ..models import DurableTask
from ..statements import tasks as stmt
from .database import ensure_schema, execute

M = TypeVar("M", bound=DurableTask)


def find(session: Session, model: type[M], key: str) -> M | None:
    """The task that holds `key`, attached to the session."""
    ensure_schema(session, model)
    found: M | None = execute(session, stmt.held_task(model), {"key": key}).scalar_one_or_none()
    return found


def release(session: Session, model: type[DurableTask], key: str) -> bool:
    """Free `key`. False: nobody held it."""
    ensure_schema(session, model)
    return execute(session, stmt.release_key(model, key)).first() is not None
