"""Run the migrations of the repository's host application, in this process or in a process of their own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, text

import sa_durable.alembic  # noqa: F401 - registers the operations
from tests.waiting import wait_until

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


def config(connection: Connection | None = None, output: io.StringIO | None = None) -> Config:
    config = Config(ROOT / "alembic.ini", output_buffer=output)
    config.attributes.update(connection=connection, configure_logger=False)
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    with engine.connect() as connection:
        command.upgrade(config(connection), revision)


def downgrade(engine: Engine, revision: str) -> None:
    with engine.connect() as connection:
        command.downgrade(config(connection), revision)


def script(revisions: str, *, down: bool = False) -> str:
    """Return what `alembic upgrade --sql`, or downgrade, writes."""
    output = io.StringIO()
    (command.downgrade if down else command.upgrade)(config(output=output), revisions, sql=True)
    return output.getvalue()


def operate(engine: Engine, operation: Callable[[Any], T]) -> T:
    """Run operations as one revision."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        with context.begin_transaction():
            return operation(Operations(context))


def psql(engine: Engine, program: str, sql: str) -> str:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return subprocess.run(
        [program, url, "-X", "-q", "-v", "ON_ERROR_STOP=1"],
        input=sql,
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ).stdout


def url_for(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


@contextmanager
def alembic_process(engine: Engine, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `alembic ...` in a process of its own, which is killed at the end of the block."""
    url = url_for(engine)
    process = subprocess.Popen(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "SA_DURABLE_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def fetch(engine: Engine, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql), parameters)]


def scalar(engine: Engine, sql: str, **parameters: Any) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text(sql), parameters)


def execute(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def wait_for_query(engine: Engine, pattern: str, wait_event: str = "%") -> int:
    """Wait for a backend of this database whose last query is LIKE `pattern`. Returns its process id."""
    seen = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND query LIKE :pattern AND wait_event LIKE :event"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return wait_until(
            lambda: connection.scalar(seen, {"pattern": pattern, "event": wait_event}), what=pattern
        )


def schema(engine: Engine) -> list[tuple[Any, ...]]:
    """Return everything about the database's tables that a schema dump has, as the catalog spells it, in order."""
    return [row for query in _SCHEMA for row in fetch(engine, f"{query} ORDER BY 1, 2, 3, 4")]


_OF = (
    " JOIN pg_class c ON c.oid = {} JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname !~ '^(pg_|information_schema)' AND c.relname <> 'alembic_version'"
)
_SCHEMA = (
    "SELECT 'table', n.nspname, c.relname, obj_description(t.oid, 'pg_class'), t.relkind, t.reloptions FROM pg_class t"
    + _OF.format("t.oid")
    + " AND t.relkind IN ('r', 'v', 'S')",
    "SELECT 'column', n.nspname, c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,"
    " format_type(a.atttypid, a.atttypmod), a.attnotnull, o.collname, pg_get_expr(d.adbin, d.adrelid),"
    " col_description(c.oid, a.attnum) FROM pg_attribute a LEFT JOIN pg_collation o ON o.oid = a.attcollation"
    " LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    + _OF.format("a.attrelid")
    + " AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped",
    "SELECT 'constraint', n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated FROM pg_constraint k"
    + _OF.format("k.conrelid"),
    "SELECT 'index', n.nspname, c.relname, pg_get_indexdef(i.indexrelid), i.indisvalid FROM pg_index i"
    + _OF.format("i.indrelid"),
)
