"""Running statements in the caller's transaction, with PostgreSQL's refusals as typed errors."""

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
    """Execute in the caller's transaction; with `model`, on the engine that the session has for it. Raises RetryTransaction where running that again can succeed, and
    SchemaOutdated where the database lacks what the statement names."""
    try:
        return session.execute(statement, parameters, bind_arguments={"mapper": model} if model else None)
    except DBAPIError as error:
        if known := typed_error(error):
            raise known from error
        raise


def typed_error(error: DBAPIError) -> RetryTransaction | SchemaOutdated | None:
    """The sa_durable error that says what to do about a database error; None for one that isn't ours to explain."""
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate == _SERIALIZATION:
        return RetryTransaction(
            "a concurrent transaction changed the same tasks, and this one's isolation level doesn't let it see that: "
            "roll back and run the transaction again",
            sqlstate,
        )
    if sqlstate == _DEADLOCK:
        return RetryTransaction(
            "PostgreSQL resolved a deadlock by aborting this transaction: roll back and run it again "
            "(spawning keys in a fixed order, or with spawn_many, avoids it)",
            sqlstate,
        )
    if sqlstate in _UNDEFINED:
        return SchemaOutdated(f"{error.orig}: the database's schema is behind: run `alembic upgrade head`")
    return None


_checked: WeakKeyDictionary[object, set[tuple[str, str | None]]] = WeakKeyDictionary()


def ensure_schema(session: Session, model: type[DurableTask]) -> None:
    """Raise SchemaOutdated, before anything is sent that would abort the caller's transaction, if the task table
    lacks columns or its key index isn't there and valid. Asked once per connection pool, table and schema."""
    _ensure_schema(session.connection(bind_arguments={"mapper": model}), model)


def connection_for(session: Session, model: type[DurableTask]) -> Connection:
    """The session's connection for `model`, in its transaction, for Core statements without the Session's overhead.

    What was pending in the session is flushed: a task may refer to it. Raises SchemaOutdated.
    """
    if session.autoflush:
        session.flush()
    connection = session.connection(bind_arguments={"mapper": model})
    _ensure_schema(connection, model)
    return connection


def execute_on(connection: Connection, statement: Executable, parameters: Any = None) -> Result[Any]:
    """As `execute`, on a connection."""
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
        raise SchemaOutdated(
            f"the database is behind sa_durable's schema: queue {model.__queue__!r} lacks {', '.join(missing)}. "
            "Nothing was sent; run `alembic upgrade head`"
        )
    known.add((table.name, schema))
