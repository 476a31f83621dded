"""Running steps on a live database: outside a transaction, with patience, one migrator at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .ddl import Step
from .sources import Patience

logger = logging.getLogger("sa_durable.alembic")

LOCK_NOT_AVAILABLE = "55P03"
POLL_SECONDS = 0.2
_LOCK = int.from_bytes(b"sa_durab")  # an advisory lock's number, the same for every release
_NO_TIMEOUTS = {
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",  # PostgreSQL 17 and later
}


def sql(statement: str) -> TextClause:
    """`statement` as it is: a `:name` in it is no bind parameter."""
    return text(statement.replace(":", r"\:"))


def sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def is_online(context: MigrationContext) -> bool:
    """Whether the operation may commit: not in a transaction that its caller began, say a test's."""
    if _autocommits(_bound(context)):
        return True
    # What autocommit_block itself asserts; there is no public question.
    return context._transaction is not None or not context._in_connection_transaction()  # noqa: SLF001 - Alembic has no public word for it; pinned by a test


@contextmanager
def alone(context: MigrationContext) -> Iterator[Connection]:
    """Outside of transactions, without timeouts, and no other migrator at work in this database.

    What the migration did before is committed.
    """
    block = nullcontext() if _autocommits(_bound(context)) else context.autocommit_block()
    with block:
        connection = _bound(context)
        with _advisory_lock(connection), settings(connection, _NO_TIMEOUTS):
            yield connection


@contextmanager
def migration_lock(connection: Connection) -> Iterator[None]:
    """Let one migrator at a time into the block; others wait here, and then find everything done.

    For `env.py`, around `context.configure(...)` and what follows it. Without it, a second `alembic upgrade` started
    during the first one's fails when it wants to record a revision that is recorded already. A connection that is
    in a transaction already belongs to a caller who knows what he does: no lock is taken.
    """
    if connection.in_transaction():
        yield
        return
    with _advisory_lock(connection):
        try:
            yield
        except BaseException:
            connection.rollback()  # in a failed transaction the lock could not be given back
            raise


def run_steps(connection: Connection, steps: Iterable[Step], patience: Patience | None) -> None:
    """Run the statements that are still to be run. `patience`: None in a caller's transaction, whose settings rule."""
    for step in steps:
        for statement in connection.scalars(sql(step.query)).all():
            logger.info("%s", statement)
            if step.brief and patience is not None:
                _briefly(connection, statement, patience)
            else:
                if patience is not None:
                    set_lock_timeout(connection, 0)
                connection.execute(sql(statement))


def _briefly(connection: Connection, statement: str, patience: Patience) -> None:
    """While we wait for the lock, everybody else waits behind us: give up soon, let them pass, try again."""
    for attempt in range(1, patience.attempts + 1):
        set_lock_timeout(connection, patience.lock_timeout)
        try:
            connection.execute(sql(statement))
        except DBAPIError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            if attempt == patience.attempts:
                raise CommandError(
                    f"{statement}: other transactions used the table through {attempt} attempts of "
                    f"{patience.lock_timeout:g} s. What was done before is kept; run the migration again when there "
                    "is no long transaction (pg_stat_activity, ordered by xact_start)"
                ) from error
        else:
            return
        pause = patience.pause(attempt)
        logger.warning(
            "the table was in use for %g s; attempt %d of %d follows in %g s",
            patience.lock_timeout,
            attempt + 1,
            patience.attempts,
            pause,
        )
        time.sleep(pause)


def set_lock_timeout(connection: Connection, seconds: float) -> None:
    connection.execute(
        text("SELECT set_config('lock_timeout', :ms, false)"), {"ms": f"{seconds * 1000:.0f}ms"}
    )


@contextmanager
def _advisory_lock(connection: Connection) -> Iterator[None]:
    """Polled: whoever waits inside pg_advisory_lock() holds a snapshot, for which a concurrent index build waits."""
    waited = 0.0
    while not _advisory(connection, "pg_try_advisory_lock"):
        if waited % 30 < POLL_SECONDS:
            logger.info("another migration is at work in this database; waiting for it")
        waited += POLL_SECONDS
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # then the session is gone, and the lock with it
            _advisory(connection, "pg_advisory_unlock")


def _advisory(connection: Connection, function: str) -> bool:
    """Ends the transaction that it begins: one that stays open would have CREATE INDEX CONCURRENTLY wait for it."""
    if connection.in_transaction():
        return bool(connection.scalar(text(f"SELECT {function}({_LOCK})")))
    with connection.begin():
        return bool(connection.scalar(text(f"SELECT {function}({_LOCK})")))


@contextmanager
def settings(connection: Connection, wanted: Mapping[str, str]) -> Iterator[None]:
    """Set what this server knows of `wanted`, and put back what was there, which RESET may not."""
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


def _bound(context: MigrationContext) -> Connection:
    assert context.connection is not None  # noqa: S101 - only offline there is none
    return context.connection


def _autocommits(connection: Connection) -> bool:
    # Not get_isolation_level(), which asks the server, and that knows of no autocommit.
    driver = connection.connection.dbapi_connection
    return driver is not None and connection.dialect.detect_autocommit_setting(driver)
