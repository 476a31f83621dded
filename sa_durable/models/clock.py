"""The one clock: PostgreSQL's."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Text, func, literal_column


def now() -> ColumnElement[datetime]:
    """The database's time, as every lease, due time and expiry sees it.

    `statement_timestamp()`, since it is STABLE: an index condition can use it, which the volatile
    `clock_timestamp()` can't; and, unlike `now()`, it moves on within a caller's long transaction.
    """
    return func.statement_timestamp()


def after(span: Any, since: ColumnElement[datetime] | None = None) -> ColumnElement[datetime]:
    """The time `span` after `since`, or after now: an interval, or an expression for one. NULL if either is.

    In UTC, where a day has 24 hours, as a timedelta's. PostgreSQL counts an interval's days on the session's own calendar:
    a plain sum of a time and "30 days" is an hour off where the clocks of its time zone change meanwhile.
    """
    return _from_utc(_in_utc(now() if since is None else since) + span)


def before(span: Any) -> ColumnElement[datetime]:
    """The time `span` ago, as `after` counts."""
    return _from_utc(_in_utc(now()) - span)


_UTC = literal_column("'UTC'", Text())  # no parameter: it would be one more for each row of an executemany


def _in_utc(moment: ColumnElement[datetime]) -> ColumnElement[Any]:
    return func.timezone(_UTC, moment, type_=DateTime())


def _from_utc(moment: ColumnElement[Any]) -> ColumnElement[datetime]:
    return func.timezone(_UTC, moment, type_=DateTime(timezone=True))
