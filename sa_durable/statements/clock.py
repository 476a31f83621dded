"""The one clock: PostgreSQL's."""

from datetime import datetime

from sqlalchemy import ColumnElement, Select, func, select


def now() -> ColumnElement[datetime]:
    """The database's time, as every lease, due time and expiry sees it.

    `statement_timestamp()`, since it is STABLE: an index condition can use it, which the volatile
    `clock_timestamp()` can't; and, unlike `now()`, it moves on within a caller's long transaction.
    """
    return func.statement_timestamp()


def read() -> Select[datetime]:
    """The time, for who asks for nothing else."""
    return select(now())
