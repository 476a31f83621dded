"""Classify database errors: transient, lost race, refused data. Describe them for the log without data."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import RetryTransaction, SchemaOutdated
from .engines import PREPARE_THRESHOLD

LOST_RACE = frozenset({"40001", "40P01"})
"""SQLSTATEs of transactions that lost against a concurrent one: serialization failure and deadlock."""

DATA_EXCEPTION_CLASS = "22"
"""SQLSTATE class of errors whose messages quote values."""

_REFUSED_DATA_CLASSES = frozenset({DATA_EXCEPTION_CLASS, "23", "54"})
"""SQLSTATE classes: data exception, integrity constraint violation, program limit exceeded."""

_UNAVAILABLE_CLASSES = frozenset({"08", "53", "55", "57"})
"""SQLSTATE classes: connection failure, insufficient resources (connections, memory, disk), object locked or
in use, operator intervention (the server starts or stops, or the statement was cancelled)."""


def is_transient(error: Exception) -> bool:
    """Return whether the same transaction may succeed later: no database, or a lost race."""
    if isinstance(error, DBAPIError):
        transient = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    else:
        # OSError: errors of asyncpg while it connects. SQLAlchemy doesn't wrap these.
        transient = isinstance(error, OSError | RetryTransaction | PoolTimeoutError)
    return transient or sqlstate(error) in LOST_RACE or sqlstate(error)[:2] in _UNAVAILABLE_CLASSES


def sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's error code; empty if the error has none."""
    return getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None) or ""


def is_data_error(error: Exception) -> bool:
    """Return whether PostgreSQL refused the values themselves, so that sending them again can't succeed."""
    return isinstance(error, DBAPIError) and sqlstate(error)[:2] in _REFUSED_DATA_CLASSES


def describe_for_log(error: BaseException) -> str:
    """Return an error's type, and PostgreSQL's code and message, without rows and parameters."""
    if isinstance(error, DBAPIError):
        diagnosis = getattr(error.orig, "diag", None)
        message = getattr(diagnosis, "message_primary", None) or (str(error.orig).splitlines() or [""])[0]
        if sqlstate(error).startswith(DATA_EXCEPTION_CLASS):
            message = ""  # 'invalid input syntax for type uuid: "..."'
        if "prepared statement" in message:
            message += (
                f" (behind a pooler without prepared statements, connect with {PREPARE_THRESHOLD}=None)"
            )
        return " ".join(filter(None, (type(error.orig).__name__, sqlstate(error), message)))
    if isinstance(error, SchemaOutdated | RetryTransaction):
        return f"{type(error).__name__}: {error}"
    return type(error).__qualname__
