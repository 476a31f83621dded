"""Execute schema steps on a live database: outside a transaction, one migrator at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .ddl import SchemaStep
from .sources import LockRetry

logger = logging.getLogger("sa_durable.alembic")

LOCK_NOT_AVAILABLE = "55P03"
POLL_INTERVAL_S = 0.2
WAITING_LOG_INTERVAL_S = 30
_LOCK = int.from_bytes(b"sa_durab")  # the number of an advisory lock, the same in every release
_NO_TIMEOUTS = {
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",  # PostgreSQL 17 and later
}


def sql(statement: str) -> TextClause:
    """Return `statement` as it is: a `:name` in it is not a bind parameter."""
    return text(statement.replace(":", r"\:"))


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of a driver's error: `sqlstate` of psycopg and asyncpg, `pgcode` of psycopg2."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def is_online(context: MigrationContext) -> bool:
    """Return whether the operation may commit: it may not in a transaction that its caller began."""
    if _autocommits(_connection_of(context)):
        return True
    # The condition that autocommit_block asserts. Alembic has no public function for it. A test pins it.
    return context._transaction is not None or not context._in_connection_transaction()  # noqa: SLF001 - as above


@contextmanager
def exclusive(context: MigrationContext) -> Iterator[Connection]:
    """Enter a block without transaction or timeouts, in which no other migrator changes this database.

    Commits what the migration did before.
    """
    block = nullcontext() if _autocommits(_connection_of(context)) else context.autocommit_block()
    with block:
        connection = _connection_of(context)
        with _advisory_lock(connection), settings(connection, _NO_TIMEOUTS):
            yield connection


@contextmanager
def migration_lock(connection: Connection) -> Iterator[None]:
    """Let one migrator at a time into the block. Others wait here, and then find every revision applied.

    Use it in `env.py`, around `context.configure(...)` and the lines that follow. Without it, a second
    `alembic upgrade` that starts during the first one fails when it records a revision that is recorded
    already.

    Args:
        connection: The connection that runs the migrations. If it is in a transaction already, its caller
            decides when to commit, and no lock is taken.
    """
    if connection.in_transaction():
        yield
        return
    with _advisory_lock(connection):
        try:
            yield
        except BaseException:
            connection.rollback()  # a failed transaction could not release the lock
            raise


def execute_steps(connection: Connection, steps: Iterable[SchemaStep], lock_retry: LockRetry | None) -> None:
    """Execute the statements that the steps return.

    Args:
        connection: Where to execute them.
        steps: The steps.
        lock_retry: How to wait for locks. None: in the caller's transaction, whose own settings apply.
    """
    for step in steps:
        for statement in connection.scalars(sql(step.query)).all():
            logger.info("%s", statement)
            if step.brief and lock_retry is not None:
                _execute_with_lock_retry(connection, statement, lock_retry)
            else:
                if lock_retry is not None:
                    set_lock_timeout(connection, 0)
                connection.execute(sql(statement))


def _execute_with_lock_retry(connection: Connection, statement: str, lock_retry: LockRetry) -> None:
    """Execute a statement that needs a short exclusive lock.

    While it waits for the lock, all other sessions queue behind it. So it gives up soon, lets them pass, and
    tries again.
    """
    for attempt in range(1, lock_retry.attempts + 1):
        set_lock_timeout(connection, lock_retry.lock_timeout)
        try:
            connection.execute(sql(statement))
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            if attempt == lock_retry.attempts:
                raise CommandError(
                    f"{statement}: could not lock the table in {attempt} attempts of "
                    f"{lock_retry.lock_timeout:g} s, because other transactions use it. Earlier steps are "
                    "kept. End long transactions (pg_stat_activity, ordered by xact_start), then run the "
                    "migration again."
                ) from error
        else:
            return
        pause = lock_retry.backoff(attempt)
        logger.warning(
            "could not lock the table within %g s (other transactions use it); attempt %d of %d follows in"
            " %g s",
            lock_retry.lock_timeout,
            attempt + 1,
            lock_retry.attempts,
            pause,
        )
        time.sleep(pause)


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    """Set `lock_timeout` for the session. 0 waits without end."""
    connection.execute(
        text("SELECT set_config('lock_timeout', :ms, false)"), {"ms": f"{seconds * 1000:.0f}ms"}
    )


@contextmanager
def _advisory_lock(connection: Connection) -> Iterator[None]:
    """Hold the migrators' advisory lock.

    It polls, because a session that waits inside pg_advisory_lock() holds a snapshot, and a concurrent index
    build waits for every older snapshot.
    """
    waited = 0.0
    while not _advisory(connection, "pg_try_advisory_lock"):
        if waited % WAITING_LOG_INTERVAL_S < POLL_INTERVAL_S:
            logger.info("another migration is running in this database; waiting for it to end")
        waited += POLL_INTERVAL_S
        time.sleep(POLL_INTERVAL_S)
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # the session has ended, and released the lock
            _advisory(connection, "pg_advisory_unlock")


def _advisory(connection: Connection, function: str) -> bool:
    """Call an advisory lock function and end the transaction that this begins.

    CREATE INDEX CONCURRENTLY would wait for a transaction that stays open.
    """
    if connection.in_transaction():
        return bool(connection.scalar(text(f"SELECT {function}({_LOCK})")))
    with connection.begin():
        return bool(connection.scalar(text(f"SELECT {function}({_LOCK})")))


@contextmanager
def settings(connection: Connection, wanted: Mapping[str, str]) -> Iterator[None]:
    """Set those of `wanted` that this server has. Restores the old values at the end."""
    rows = connection.execute(
        text("SELECT name, setting FROM pg_settings WHERE name = ANY(:names)"), {"names": list(wanted)}
    )
    before: dict[str, str] = {row.name: row.setting for row in rows}
    for name in before:
        _set(connection, name, wanted[name])
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):
            for name, setting in before.items():
                _set(connection, name, setting)


def _set(connection: Connection, name: str, setting: str) -> None:
    connection.execute(text("SELECT set_config(:name, :setting, false)"), {"name": name, "setting": setting})


def _connection_of(context: MigrationContext) -> Connection:
    assert context.connection is not None  # noqa: S101 - it is None only with --sql
    return context.connection


def _autocommits(connection: Connection) -> bool:
    # get_isolation_level() would ask the server, which does not know about a driver's autocommit.
    driver = connection.connection.dbapi_connection
    return driver is not None and connection.dialect.detect_autocommit_setting(driver)
