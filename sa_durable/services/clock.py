"""Read the database's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from ..statements import clock as stmt
from .execute import execute


def now(session: Session) -> datetime:
    """Return the database's time, in UTC."""
    moment: datetime = execute(session, stmt.read()).scalar_one()
    return moment.astimezone(UTC)
