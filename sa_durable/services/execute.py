"""Execute statements in the caller's transaction, and raise typed errors for PostgreSQL's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Executable, Result
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..errors import RetryTransaction, SchemaOutdated
from ..statements import schema as stmt
from ..statements.tables import table_of

if TYPE_CHECKING:
    from ..models import DurableTask

_SERIALIZATION, _DEADLOCK = "40001", "40P01"
_UNDEFINED = frozenset({"42P01", "42703", "42P10"})  # table, column, index of an ON CONFLICT


def execute(
    session: Session, statement: Executable, parameters: Any = None, *, model: type[DurableTask] | None = None
) -> Result[Any]:
    """Execute a statement in the caller's transaction.

    Args:
        session: The caller's session.
        statement: The statement.
        parameters: Its parameters: a mapping, or a list of mappings for executemany.
        model: The queue whose engine executes it, for sessions with several engines. None: the session
            decides.

    Raises:
        RetryTransaction: Running the transaction again can succeed.
        SchemaOutdated: The database lacks a table, column or index of the statement.
    """
    try:
        return session.execute(statement, parameters, bind_arguments={"mapper": model} if model else None)
    except DBAPIError as error:
        if known := typed_error(error):
            raise known from error
        raise


def typed_error(error: DBAPIError) -> RetryTransaction | SchemaOutdated | None:
    """Return the sa_durable error that says what to do about a database error; None if there is none."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate == _SERIALIZATION:
        return RetryTransaction(
            "a concurrent transaction changed the same rows, and this transaction's isolation level can't "
            "see the change. Nothing was written. Roll back and retry the transaction.",
            sqlstate,
        )
    if sqlstate == _DEADLOCK:
        return RetryTransaction(
            "PostgreSQL aborted this transaction to resolve a deadlock. Nothing was written. Roll back and "
            "retry the transaction. To avoid the deadlock, spawn keys in a fixed order, or with spawn_many.",
            sqlstate,
        )
    if sqlstate in _UNDEFINED:
        return SchemaOutdated(
            f"the database is behind sa_durable's schema: {error.orig}. Run `alembic upgrade head`."
        )
    return None


_checked: WeakKeyDictionary[object, set[tuple[str, str | None]]] = WeakKeyDictionary()


def ensure_schema(session: Session, model: type[DurableTask]) -> None:
    """Raise SchemaOutdated if a table of the queue, a column, or the valid key index is missing.

    Called before statements that would abort the caller's transaction. Asks the database once for each
    connection pool, table and schema.
    """
    _ensure_schema(session.connection(bind_arguments={"mapper": model}), model)


def connection_for(session: Session, model: type[DurableTask]) -> Connection:
    """Return the session's connection for a queue, in its transaction, to avoid the Session's overhead.

    Flushes pending objects of the session first, because a task may refer to them. Raises SchemaOutdated.
    """
    if session.autoflush:
        session.flush()
    connection = session.connection(bind_arguments={"mapper": model})
    _ensure_schema(connection, model)
    return connection


def execute_on(connection: Connection, statement: Executable, parameters: Any = None) -> Result[Any]:
    """Execute a statement as `execute` does, on a connection."""
    try:
        return connection.execute(statement, parameters)
    except DBAPIError as error:
        if known := typed_error(error):
            raise known from error
        raise


def _ensure_schema(connection: Connection, model: type[DurableTask]) -> None:
    table = table_of(model)
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translated.get(table.schema, table.schema)
    known = _checked.setdefault(connection.engine.pool, set())
    if (table.name, schema) in known:
        return
    missing = list(execute_on(connection, stmt.missing(model, schema)).scalars())
    if missing:
        is_are = "is" if len(missing) == 1 else "are"
        raise SchemaOutdated(
            f"{', '.join(missing)} of queue {model.__queue__!r} {is_are} missing in the database. "
            "Nothing was sent. Run `alembic upgrade head`."
        )
    known.add((table.name, schema))
