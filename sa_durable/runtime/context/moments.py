"""Check and read the durations and moments of sleeps and waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ... import policy
from ...errors import InvalidOptions


def check_timeout(timeout: timedelta | None) -> timedelta | None:
    """Return `timeout`. Raises InvalidOptions unless it is None or a timedelta of 0 to a hundred years."""
    if timeout is not None:
        policy.check_duration("timeout", timeout, zero=True)
    return timeout


def check_delay(delay: timedelta) -> timedelta:
    """Return `delay`. Raises InvalidOptions unless it is a timedelta of 0 to a hundred years."""
    policy.check_duration("delay", delay, zero=True)
    return delay


def check_moment(moment: datetime) -> datetime:
    """Return `moment`. Raises InvalidOptions unless it is an aware datetime."""
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOptions(f"moment={moment!r} must be an aware datetime, for example with tzinfo=UTC")
    return moment


def read_moment(stored: str) -> datetime:
    """Return a time that PostgreSQL wrote in ISO format, in UTC."""
    return datetime.fromisoformat(stored).astimezone(UTC)
