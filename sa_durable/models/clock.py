"""The one clock of sa_durable: PostgreSQL's."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Text, func, literal_column


def now() -> ColumnElement[datetime]:
    """Return the database's time, by which every lease, due time and deadline is set and checked.

    It is `statement_timestamp()`. That function is STABLE, so that an index condition can use it, unlike the
    volatile `clock_timestamp()`. And it advances within a caller's long transaction, unlike `now()`.
    """
    return func.statement_timestamp()


def after(span: Any, since: ColumnElement[datetime] | None = None) -> ColumnElement[datetime]:
    """Return the time `span` (an interval, or an expression for one) after `since`, or after now.

    NULL if either is NULL. Computed in UTC, where a day has 24 hours, as in a timedelta. PostgreSQL adds the
    days of an interval on the calendar of the session's time zone: a plain sum of a time and "30 days" is an
    hour off when that zone changes its clocks in between.
    """
    return _from_utc(_in_utc(now() if since is None else since) + span)


def before(span: Any) -> ColumnElement[datetime]:
    """Return the time `span` ago, computed in UTC as in `after`."""
    return _from_utc(_in_utc(now()) - span)


# A literal: as a parameter, executemany would send it for each row.
_UTC = literal_column("'UTC'", Text())


def _in_utc(moment: ColumnElement[datetime]) -> ColumnElement[Any]:
    return func.timezone(_UTC, moment, type_=DateTime())


def _from_utc(moment: ColumnElement[Any]) -> ColumnElement[datetime]:
    return func.timezone(_UTC, moment, type_=DateTime(timezone=True))
