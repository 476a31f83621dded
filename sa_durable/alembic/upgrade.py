"""Run the operations on a live database, or inside a transaction that the caller began."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from . import ddl, offline
from .backfill import BackfillReport, check_source, fill
from .ddl import SchemaStep, Targets
from .online import exclusive, execute_steps, is_online, sql
from .sources import Backfill, LockRetry

logger = logging.getLogger("sa_durable.alembic")


def add(
    context: MigrationContext, targets: Targets, lock_retry: LockRetry, backfill: Backfill | None
) -> list[BackfillReport]:
    """Add the key columns, check and index to every table, because new code needs them. Then fill in keys."""
    if not is_online(context):
        assert context.connection is not None  # noqa: S101 - it is None only with --sql
        return _add(context.connection, targets, None, backfill)
    with exclusive(context) as connection:
        return _add(connection, targets, lock_retry, backfill)


def change(
    context: MigrationContext, steps: Callable[[bool], Iterable[SchemaStep]], lock_retry: LockRetry
) -> None:
    """Execute steps online or in the caller's transaction, or write them as a script.

    Args:
        context: Where to execute or write.
        steps: Returns the steps. Its argument says whether indexes may be built and dropped concurrently.
        lock_retry: How long to wait for a lock that blocks other sessions.
    """
    if context.as_sql:
        offline.write(context, steps(True), lock_retry)
    elif not is_online(context):
        assert context.connection is not None  # noqa: S101 - as above
        execute_steps(context.connection, steps(False), None)
    else:
        with exclusive(context) as connection:
            execute_steps(connection, steps(True), lock_retry)


def _add(
    connection: Connection, targets: Targets, lock_retry: LockRetry | None, backfill: Backfill | None
) -> list[BackfillReport]:
    """Add keys. Without `lock_retry`: in the caller's transaction, which locks out writers until it ends."""
    online = lock_retry is not None
    tables = connection.scalars(sql(f"SELECT name FROM {targets.rows}")).all()  # noqa: S608 - see ddl
    if not tables:
        logger.warning("found no queue table (%s); nothing to do", targets)
    if backfill is not None:
        for table in tables:
            check_source(connection, table, backfill)
    execute_steps(connection, ddl.add_steps(targets, concurrently=online), lock_retry)
    if backfill is None:
        return []
    reports = []
    for table in tables:
        if not online:
            connection.execute(sql(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        reports.append(fill(connection, table, backfill, online=online))
    return reports
