"""The one clock, as statements see it."""

from datetime import datetime

from sqlalchemy import Select, select

from ..models.clock import after, before, now


def read() -> Select[datetime]:
    """The time, for who asks for nothing else."""
    return select(now())


__all__ = ["after", "before", "now", "read"]
