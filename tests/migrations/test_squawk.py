"""squawk, a linter of migrations, accepts the statements of our revisions and operations.

The rules that are turned off here each have their reason.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, event

from tests.migrations.host import operate, script, upgrade
from tests.migrations.hosts.plain.models import Base

OFF = {
    "prefer-bigint-over-int": "attempts, and the demo's own counter of steps",
    "prefer-bigint-over-smallint": "a priority has 16 bits, in an index that should be small",
    "prefer-identity": "the demo's own table, as Alembic renders an integer primary key",
    "prefer-text-field": "alembic_version is Alembic's",
    "require-statement-timeout": "nothing here is to be stopped half-way: what waits for a lock has a lock_timeout",
}
STEPS = {
    "prefer-robust-stmts": "a statement is sent only where the catalogue says that its work is not done",
    "renaming-object": "an index that is built beside the old one takes its name, which is the one that code knows",
    "ban-drop-constraint": "a check is dropped in the same statement that adds its successor",
}
NEW_TABLES = {"require-lock-timeout": "nobody uses a table that is just being created"}


def lint(sql: str, directory: Path, off: dict[str, str]) -> str:
    file = directory / "migration.sql"
    file.write_text(sql)
    squawk = Path(sysconfig.get_path("scripts")) / "squawk"
    found = subprocess.run(
        [squawk, "--pg-version", "15.0", "--exclude", ",".join(off), file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Found" in found.stdout + found.stderr, found
    return "" if found.returncode == 0 else found.stdout


def sent(engine: Engine, run: Any) -> str:
    """Return the statements that change something, or the time they may wait, as `run` sends them."""
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "set_config('lock_timeout'" in statement:
            statements.append(f"SET lock_timeout = '{parameters['ms']}'")
        elif "pg_temp." not in statement and statement.startswith(
            ("ALTER", "CREATE INDEX", "CREATE UNIQUE", "DROP INDEX")
        ):
            statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        run(engine)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert statements
    return ";\n".join([*statements, ""])


def test_the_first_revision_creates_tables_as_squawk_likes_them(tmp_path):
    assert lint(script("0001"), tmp_path, OFF | NEW_TABLES) == ""


def test_adding_keys_is_safe_online_to_squawk(before: Engine, tmp_path):
    sql = sent(before, upgrade)
    assert "CREATE UNIQUE INDEX CONCURRENTLY" in sql
    assert lint(sql, tmp_path, OFF | STEPS) == ""


def test_other_changes_are_safe_online_to_squawk(empty: Engine, tmp_path):
    def change(operations: Any) -> None:
        operations.durable_add_column("durable_mail_tasks", sa.Column("note", sa.Text(), server_default=""))
        operations.durable_build_index(
            "ix_durable_mail_tasks_due", "durable_mail_tasks", "btree (available_at, id)"
        )
        operations.durable_set_check(
            "ck_durable_mail_tasks_state", "durable_mail_tasks", "CHECK ((state <> ''::text))"
        )

    Base.metadata.create_all(empty)
    sql = sent(empty, lambda engine: operate(engine, change))
    assert sql.count("CONCURRENTLY") == 2
    assert lint(sql, tmp_path, OFF | STEPS) == ""


def test_squawk_finds_what_is_not_safe(tmp_path):
    assert "require-concurrent-index-creation" in lint("CREATE INDEX i ON t (c);", tmp_path, OFF)
