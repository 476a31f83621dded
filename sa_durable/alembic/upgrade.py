"""Running the operations on a live database, or inside a transaction that somebody else began."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from . import ddl, offline
from .backfill import BackfillReport, check_source, fill
from .ddl import Step, Targets
from .online import alone, is_online, run_steps, sql
from .sources import Backfill, Patience

logger = logging.getLogger("sa_durable.alembic")


def add(
    context: MigrationContext, targets: Targets, patience: Patience, backfill: Backfill | None
) -> list[BackfillReport]:
    """All tables get their schema first, as new code needs it; then their rows get keys."""
    if not is_online(context):
        assert context.connection is not None  # noqa: S101 - only offline there is none
        return _add(context.connection, targets, None, backfill)
    with alone(context) as connection:
        return _add(connection, targets, patience, backfill)


def change(context: MigrationContext, steps: Callable[[bool], Iterable[Step]], patience: Patience) -> None:
    """Run steps online, in a transaction that somebody else began, or write them as a script. `steps` is told whether
    they may be concurrent ones."""
    if context.as_sql:
        offline.write(context, steps(True), patience)
    elif not is_online(context):
        assert context.connection is not None  # noqa: S101 - as above
        run_steps(context.connection, steps(False), None)
    else:
        with alone(context) as connection:
            run_steps(connection, steps(True), patience)


def _add(
    connection: Connection, targets: Targets, patience: Patience | None, backfill: Backfill | None
) -> list[BackfillReport]:
    """Without patience, in the caller's transaction: the plain forms, which lock out writers until it ends."""
    online = patience is not None
    tables = connection.scalars(sql(f"SELECT name FROM {targets.rows}")).all()  # noqa: S608 - a name of our own making
    if not tables:
        logger.warning("no queue table was found (%s)", targets)
    if backfill is not None:
        for table in tables:
            check_source(connection, table, backfill)
    run_steps(connection, ddl.add_steps(targets, concurrently=online), patience)
    if backfill is None:
        return []
    reports = []
    for table in tables:
        if not online:
            connection.execute(sql(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        reports.append(fill(connection, table, backfill, online=online))
    return reports
