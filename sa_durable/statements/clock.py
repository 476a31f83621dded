"""The one clock, for statements."""

from datetime import datetime

from sqlalchemy import Select, select

from ..models.clock import after, before, now


def read() -> Select[datetime]:
    """Return a statement that only reads the time."""
    return select(now())


__all__ = ["after", "before", "now", "read"]
