"""Copying rows into a queue's table: noted in one snapshot, copied in pages that commit, keys given as a backfill does.

It can stop anywhere and start again: a row's id follows from the row, so what was copied is found there. The source is
only read.
"""

from __future__ import annotations

# ruff: noqa: S608 - sources and expressions are the author's SQL, in a migration script; names go through the catalogue
import logging
from collections.abc import Iterable

from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection

from ...values import TaskState
from ..backfill import fill
from ..ddl import Targets, literal
from ..online import alone, is_online, settings, sql
from ..pages import LISTED, PLANS
from ..sources import Backfill
from .values import PAGE, Import, ImportReport, Left, Rows

logger = logging.getLogger("sa_durable.alembic")

NOTED = "pg_temp.sa_durable_import"
_DROP = f"DROP TABLE IF EXISTS {NOTED}"
_TYPES = {"id": "uuid", "name": "text", "params": "jsonb", "state": "text"}
_LEFT = {
    "name": "its name is missing, or longer than 255 characters",
    "params": "its params are no JSON object",
    "state": "its state is none that a task has",
    "id": "another row has the same id",
}


def take_over(context: MigrationContext, targets: Targets, wanted: Import) -> ImportReport:
    """Run an import on a live database, or in a transaction that somebody else began."""
    if context.as_sql:
        raise CommandError(
            "an import can't be rendered by `--sql`: what it leaves depends on the rows. Run it online"
        )
    if is_online(context):
        with alone(context) as connection:
            return _take_over(connection, targets, wanted, online=True)
    assert context.connection is not None  # noqa: S101 - only offline there is none
    return _take_over(context.connection, targets, wanted, online=False)


def _take_over(connection: Connection, targets: Targets, wanted: Import, *, online: bool) -> ImportReport:
    table = connection.scalar(sql(f"SELECT name FROM {targets.rows}"))
    connection.execute(sql(_DROP))
    connection.execute(sql(_note(wanted.rows)))
    connection.execute(sql(f"CREATE UNIQUE INDEX ON {NOTED} (n)"))
    connection.execute(sql(f"CREATE INDEX ON {NOTED} (imported_id)"))
    connection.execute(sql(f"ANALYZE {NOTED}"))
    columns = [*_TYPES, *(name for name in wanted.rows.columns if name not in _TYPES)]
    with settings(connection, PLANS):
        copied, present = _copy(connection, table, columns, wanted)
    for statement in wanted.closing:
        connection.execute(sql(statement))
    keys = None
    if wanted.rows.key is not None:
        source = f"SELECT imported_key FROM {NOTED} WHERE imported_id = id AND left_because IS NULL"
        keys = fill(connection, table, Backfill(f"({source})", wanted.hold, wanted.batch_size), online=online)
    report = ImportReport(table, copied, present, _left(connection), keys)
    connection.execute(sql(_DROP))
    report.log()
    return report


def _note(rows: Rows) -> str:
    """Every row of the source as the task that it will be, numbered by age, with the reason if it can't be one."""
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
SELECT row_number() OVER (ORDER BY {age}found.id) AS n, found.id AS imported_id, found.imported_key, found.identity,
  CASE
    WHEN found.name IS NULL OR char_length(found.name) NOT BETWEEN 1 AND 255 THEN 'name'
    WHEN jsonb_typeof(found.params) IS DISTINCT FROM 'object' THEN 'params'
    WHEN found.state IS NULL OR found.state NOT IN ({words}) THEN 'state'
    WHEN row_number() OVER (PARTITION BY found.id) > 1 THEN 'id'
  END AS left_because,
  CASE found.state WHEN 'running' THEN 'pending' ELSE found.state END AS imported_state, {own}
FROM (SELECT CAST(({rows.identity}) AS text) AS identity, CAST(({rows.key or "NULL"}) AS text) AS imported_key,
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
        selected += ", CASE WHEN imported_state IN ('completed', 'failed', 'cancelled') THEN statement_timestamp() END"
    total = connection.scalar(sql(f"SELECT count(*) FROM {NOTED}")) or 0
    copied = able = 0
    for after in range(0, total, wanted.batch_size):
        page = f"n > {after} AND n <= {after + wanted.batch_size} AND left_because IS NULL"
        insert = (
            f"WITH new AS (INSERT INTO {table} ({', '.join(names)}) SELECT {selected} FROM {NOTED} WHERE {page}"
            " ON CONFLICT (id) DO NOTHING RETURNING id)"
        )
        counts = f"SELECT (SELECT count(*) FROM new) AS copied, (SELECT count(*) FROM {NOTED} WHERE {page}) AS able"
        row = connection.execute(sql(f"{_following(insert, wanted)} {counts}")).one()
        copied, able = copied + row.copied, able + row.able
        logger.debug("%s: %d of %d rows done", table, min(after + wanted.batch_size, total), total)
    return copied, able - copied


def _following(insert: str, wanted: Import) -> str:
    """One statement, so that a task is never there without what belongs to it."""
    parts = [
        f"part_{n} AS ({statement.replace(PAGE, 'SELECT id FROM new')})"
        for n, statement in enumerate(wanted.following)
    ]
    return ", ".join([insert, *parts])


def _left(connection: Connection) -> dict[str, Left]:
    found = connection.execute(
        sql(
            f"SELECT left_because, count(*) AS number, (array_agg(identity ORDER BY n))[1:{LISTED}] AS first"
            f" FROM {NOTED} WHERE left_because IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
    )
    return {_LEFT[row.left_because]: Left(row.number, tuple(row.first)) for row in found}
