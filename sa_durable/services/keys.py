"""Find and release idempotency keys."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy.orm import Session

from .. import policy
from ..models import DurableTask
from ..statements import keys as stmt
from .execute import ensure_schema, execute

M = TypeVar("M", bound=DurableTask)


def find(session: Session, model: type[M], key: str) -> M | None:
    """Return the task that holds `key`, attached to the session; None if the key is free."""
    if not policy.is_storable_key(key):
        return None
    ensure_schema(session, model)
    found: M | None = execute(session, stmt.held_task(model), {"key": key}, model=model).scalar_one_or_none()
    return found


def release(session: Session, model: type[DurableTask], key: str) -> bool:
    """Free `key`. Returns whether a task held it."""
    if not policy.is_storable_key(key):
        return False
    ensure_schema(session, model)
    return execute(session, stmt.release_key(model, key), model=model).first() is not None
