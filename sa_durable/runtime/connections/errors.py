"""What an error of the database means: passing, refused, and what a log may say of it."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import RetryTransaction, SchemaOutdated
from .engines import PREPARE_THRESHOLD

DATA_EXCEPTION_CLASS = "22"  # the class of errors whose messages quote values


LOST_RACE = frozenset({"40001", "40P01"})  # serialization failure, deadlock


# no connection, no room for one (or on the disk), locked for too long, starting, stopping or cancelled
_UNAVAILABLE_CLASSES = frozenset({"08", "53", "55", "57"})


def is_transient(error: Exception) -> bool:
    """Whether the same transaction, run again, may succeed: the database was away, or it lost a race."""
    if isinstance(error, DBAPIError):
        passes = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    else:
        # OSError: asyncpg passes on what the socket raises, and its own errors of a connection that isn't made yet.
        passes = isinstance(error, OSError | RetryTransaction | PoolTimeoutError)
    return passes or sqlstate(error) in LOST_RACE or sqlstate(error)[:2] in _UNAVAILABLE_CLASSES


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's code; empty if the error has none."""
    return getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None) or ""


def is_data_error(error: Exception) -> bool:
    """Whether PostgreSQL refused the values themselves: data, integrity, or a limit."""
    return isinstance(error, DBAPIError) and sqlstate(error)[:2] in {DATA_EXCEPTION_CLASS, "23", "54"}


def describe_for_log(error: BaseException) -> str:
    """What a log may say about an error: its type, and PostgreSQL's code and message, but no row and no params."""
    if isinstance(error, DBAPIError):
        diagnosis = getattr(error.orig, "diag", None)
        said = getattr(diagnosis, "message_primary", None) or (str(error.orig).splitlines() or [""])[0]
        if sqlstate(error).startswith(DATA_EXCEPTION_CLASS):
            said = ""  # 'invalid input syntax for type uuid: "..."'
        if "prepared statement" in said:
            said += f" (behind a pooler that keeps none, connect with {PREPARE_THRESHOLD}=None)"
        return " ".join(filter(None, (type(error.orig).__name__, sqlstate(error), said)))
    if isinstance(error, SchemaOutdated | RetryTransaction):
        return f"{type(error).__name__}: {error}"
    return type(error).__qualname__
