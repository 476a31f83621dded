"""Copy rows into a queue's table.

The rows are recorded in one snapshot, then copied in pages that commit. Then they get their keys.

An import can stop anywhere and start again: a task's id is computed from its row, so rows that are copied
already are found. The source is only read.
"""

from __future__ import annotations

# ruff: noqa: S608 - sources and expressions are SQL by contract; names come from the catalog
import logging
from collections.abc import Iterable

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection

from ...values import TaskState
from ..backfill import fill
from ..ddl import Targets, literal
from ..online import exclusive, is_online, settings, sql
from ..pages import LISTED, PLANS
from ..sources import Backfill
from .values import PAGE, Import, ImportReport, Rows, SkippedRows

logger = logging.getLogger("sa_durable.alembic")

RECORDED = "pg_temp.sa_durable_import"
_DROP = f"DROP TABLE IF EXISTS {RECORDED}"
_TYPES = {"id": "uuid", "name": "text", "params": "jsonb", "state": "text"}
_REASONS = {
    "name": "its name is missing, or longer than 255 characters",
    "params": "its params are not a JSON object",
    "state": "its state is not a task state",
    "id": "another row has the same id",
}


def import_tasks(context: MigrationContext, targets: Targets, wanted: Import) -> ImportReport:
    """Import tasks on a live database, or in a transaction that the caller began."""
    if context.as_sql:
        raise CommandError(
            "`--sql` can't render an import, because the rows decide what is skipped."
            " Run this revision online."
        )
    if is_online(context):
        with exclusive(context) as connection:
            return _import(connection, targets, wanted, online=True)
    assert context.connection is not None  # noqa: S101 - it is None only with --sql
    return _import(context.connection, targets, wanted, online=False)


def _import(connection: Connection, targets: Targets, wanted: Import, *, online: bool) -> ImportReport:
    table = connection.scalar(sql(f"SELECT name FROM {targets.rows}"))
    connection.execute(sql(_DROP))
    connection.execute(sql(_record(wanted.rows)))
    connection.execute(sql(f"CREATE UNIQUE INDEX ON {RECORDED} (n)"))
    connection.execute(sql(f"CREATE INDEX ON {RECORDED} (imported_id)"))
    connection.execute(sql(f"ANALYZE {RECORDED}"))
    columns = [*_TYPES, *(name for name in wanted.rows.columns if name not in _TYPES)]
    with settings(connection, PLANS):
        copied, present = _copy(connection, table, columns, wanted)
    for statement in wanted.closing:
        connection.execute(sql(statement))
    keys = None
    if wanted.rows.key is not None:
        source = f"SELECT imported_key FROM {RECORDED} WHERE imported_id = id AND skipped_because IS NULL"
        keys = fill(connection, table, Backfill(f"({source})", wanted.hold, wanted.batch_size), online=online)
    report = ImportReport(table, copied, present, _skipped(connection), keys)
    connection.execute(sql(_DROP))
    report.log()
    return report


def _record(rows: Rows) -> str:
    """Record every row of the source as a task, numbered by age, or with the reason to skip it."""
    given = {"id": f"md5({literal(rows.source)} || ':' || ({rows.identity}))", **rows.columns}
    expressions = ",\n  ".join(
        f"CAST(({expression}) AS {_TYPES[name]}) AS {name}" if name in _TYPES else f"({expression}) AS {name}"
        for name, expression in given.items()
    )
    words = ", ".join(literal(state.value) for state in TaskState)
    own = ", ".join(f"found.{name}" for name in given if name not in {"id", "state"})
    age = "found.created_at, " if "created_at" in given else ""
    return f"""\
CREATE TEMPORARY TABLE sa_durable_import AS
SELECT row_number() OVER (ORDER BY {age}found.id) AS n, found.id AS imported_id, found.imported_key,
  found.identity,
  CASE
    WHEN found.name IS NULL OR char_length(found.name) NOT BETWEEN 1 AND 255 THEN 'name'
    WHEN jsonb_typeof(found.params) IS DISTINCT FROM 'object' THEN 'params'
    WHEN found.state IS NULL OR found.state NOT IN ({words}) THEN 'state'
    WHEN row_number() OVER (PARTITION BY found.id) > 1 THEN 'id'
  END AS skipped_because,
  CASE found.state WHEN 'running' THEN 'pending' ELSE found.state END AS imported_state, {own}
FROM (SELECT CAST(({rows.identity}) AS text) AS identity,
  CAST(({rows.key or "NULL"}) AS text) AS imported_key,
  {expressions}
FROM {rows.source} WHERE {rows.where}) AS found"""


def _copy(connection: Connection, table: str, columns: Iterable[str], wanted: Import) -> tuple[int, int]:
    names = list(columns)
    noted = {"id": "imported_id", "state": "imported_state"}
    selected = ", ".join(noted.get(name, name) for name in names)
    if "run_id" not in names:
        names.append("run_id")
        selected += ", gen_random_uuid()"
    if "finished_at" not in names:
        names.append("finished_at")
        ended = "imported_state IN ('completed', 'failed', 'cancelled')"
        selected += f", CASE WHEN {ended} THEN statement_timestamp() END"
    total = connection.scalar(sql(f"SELECT count(*) FROM {RECORDED}")) or 0
    copied = eligible = 0
    for after in range(0, total, wanted.batch_size):
        page = f"n > {after} AND n <= {after + wanted.batch_size} AND skipped_because IS NULL"
        insert = (
            f"WITH new AS (INSERT INTO {table} ({', '.join(names)}) SELECT {selected} FROM {RECORDED}"
            f" WHERE {page}"
            " ON CONFLICT (id) DO NOTHING RETURNING id)"
        )
        counts = (
            "SELECT (SELECT count(*) FROM new) AS copied,"
            f" (SELECT count(*) FROM {RECORDED} WHERE {page}) AS eligible"
        )
        row = connection.execute(sql(f"{_following(insert, wanted)} {counts}")).one()
        copied, eligible = copied + row.copied, eligible + row.eligible
        logger.debug("%s: copied %d of %d rows", table, min(after + wanted.batch_size, total), total)
    return copied, eligible - copied


def _following(insert: str, wanted: Import) -> str:
    """Join the statements into one, so that a task never exists without what belongs to it."""
    parts = [
        f"part_{n} AS ({statement.replace(PAGE, 'SELECT id FROM new')})"
        for n, statement in enumerate(wanted.following)
    ]
    return ", ".join([insert, *parts])


def _skipped(connection: Connection) -> dict[str, SkippedRows]:
    found = connection.execute(
        sql(
            "SELECT skipped_because, count(*) AS number, (array_agg(identity"
            f" ORDER BY n))[1:{LISTED}] AS first"
            f" FROM {RECORDED} WHERE skipped_because IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
    )
    return {_REASONS[row.skipped_because]: SkippedRows(row.number, tuple(row.first)) for row in found}
