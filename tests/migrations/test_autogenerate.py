"""`alembic revision --autogenerate` in three host applications, with the plugin of sa_durable.alembic.

What an older or newer release of the library would have left in the database is made by SQL; then autogenerate writes
a revision, that runs as it is, `alembic check` is clean, and back it gives exactly the schema that was there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import Engine, text

from sa_durable import verify
from tests.migrations.application import Application, body
from tests.migrations.host import schema

pytestmark = pytest.mark.service  # what is reflected depends on PostgreSQL, how it is compared on SQLAlchemy

HOSTS = {
    "plain": "durable_mail_tasks",
    "asynchronous": "durable_reports_tasks",
    "schema": "app.durable_billing_tasks",
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, empty: Engine, tmp_path: Path) -> Application:
    return Application(request.param, empty, tmp_path / "alembic")


@pytest.fixture
def current(host: Application) -> Application:
    """An application whose tables are those of this release."""
    with host.engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS app"))
        host.metadata.create_all(connection)
    return host


def names(host: Application) -> dict[str, str]:
    """What statements say about the host's queue."""
    tasks = HOSTS[next(name for name in HOSTS if f".{name}." in host.models.__name__)]
    table = tasks.rpartition(".")[2]
    prefix = tasks.removesuffix(table)
    return {"tasks": tasks, "table": table, "prefix": prefix, "waits": tasks.replace("_tasks", "_waits")}


def test_a_new_queue_renders_as_stock_operations_once(host):
    script = host.revise()
    assert "durable_build_index" not in script
    assert "durable_add" not in script
    assert script.count("op.create_table(") == len(host.metadata.tables)
    host.upgrade()
    host.check()
    assert verify(host.engine, host.metadata) == []
    assert set(body(host.revise(), "upgrade")) == {"pass"}


# What another release left, by SQL, and the operation that mends it
LEFT: dict[str, tuple[str, str]] = {
    "an index of another predicate": (
        "DROP INDEX {prefix}ix_{table}_due; CREATE INDEX ix_{table}_due ON {tasks} (available_at)",
        "op.durable_build_index('ix_{table}_due'",
    ),
    "an index that includes more": (
        (
            "DROP INDEX {prefix}ix_{table}_due;"
            " CREATE INDEX ix_{table}_due ON {tasks} (available_at) INCLUDE (id) WHERE state = 'sleeping'"
        ),
        "op.durable_build_index('ix_{table}_due'",
    ),
    "an index of another operator class": (
        (
            "DROP INDEX {prefix}ix_{table}_ready; CREATE INDEX ix_{table}_ready ON {tasks}"
            " (name text_pattern_ops, priority, available_at, id) WHERE state = 'pending'"
        ),
        "op.durable_build_index('ix_{table}_ready'",
    ),
    "an index that is not unique": (
        "DROP INDEX {prefix}uq_{table}_key; CREATE INDEX uq_{table}_key ON {tasks} (idempotency_key)",
        "op.durable_build_index('uq_{table}_key'",
    ),
    "an index that an interrupted build left invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{prefix}uq_{table}_key'::regclass",
        "op.durable_build_index('uq_{table}_key'",
    ),
    "no index": ("DROP INDEX {prefix}ix_{table}_ready", "op.durable_build_index('ix_{table}_ready'"),
    "an index that is no longer needed": (
        "CREATE INDEX ix_{table}_old ON {tasks} (claimed_by) WHERE state = 'running'",
        "op.durable_drop_index('ix_{table}_old'",
    ),
    "a check of another text": (
        (
            "ALTER TABLE {tasks} DROP CONSTRAINT ck_{table}_state;"
            " ALTER TABLE {tasks} ADD CONSTRAINT ck_{table}_state CHECK (state <> '')"
        ),
        "op.durable_set_check('ck_{table}_state'",
    ),
    "no check": (
        "ALTER TABLE {tasks} DROP CONSTRAINT ck_{table}_state",
        "op.durable_set_check('ck_{table}_state'",
    ),
    "a check that is no longer needed": (
        "ALTER TABLE {tasks} ADD CONSTRAINT ck_{table}_old CHECK (attempt > 0)",
        "op.durable_drop_check('ck_{table}_old'",
    ),
    "no column": ("ALTER TABLE {tasks} DROP COLUMN max_duration", "op.durable_add_column('{table}'"),
    "a sibling's column that is no longer needed": (
        "ALTER TABLE {waits} ADD COLUMN note text",
        "op.durable_drop_column(",
    ),
    "another default": (
        "ALTER TABLE {tasks} ALTER max_attempts SET DEFAULT 3",
        "op.alter_column('{table}', 'max_attempts'",
    ),
    "no keys": (
        "ALTER TABLE {tasks} DROP COLUMN idempotency_key, DROP COLUMN key_hold, DROP COLUMN key_expires_at",
        "op.durable_add_key('{table}'",
    ),
}


@pytest.mark.parametrize("left", LEFT)
def test_differences_of_another_release_are_repaired_and_downgraded(current, left):
    statements, operation = (text.format(**names(current)) for text in LEFT[left])
    current.execute(*statements.split(";"))
    before = schema(current.engine)
    differences = verify(current.engine, current.metadata)
    assert differences
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        current.check()

    script = current.revise()
    upgrade = "\n".join(body(script, "upgrade"))
    assert upgrade.startswith(operation)
    assert upgrade.count("op.") - upgrade.count("op.f(") == 1

    current.upgrade()
    current.check()
    assert verify(current.engine, current.metadata) == []
    current.downgrade()
    assert _comparable(schema(current.engine), left) == _comparable(before, left)
    current.upgrade()
    current.check()


def _comparable(rows: list[tuple[Any, ...]], left: str) -> list[tuple[Any, ...]]:
    if "invalid" in left:  # what was invalid comes back valid
        return [row for row in rows if row[0] != "index"] + [row[:-1] for row in rows if row[0] == "index"]
    if "column" in left:  # a column that comes back comes last
        return sorted((tuple("" if i == 3 else part for i, part in enumerate(row)) for row in rows), key=str)
    return rows


def test_the_applications_own_changes_are_rendered_beside_the_librarys(current):
    table = names(current)
    current.execute(
        "ALTER TABLE {tasks} ADD COLUMN own integer; CREATE INDEX ix_own ON {tasks} (own)".format(**table),
        "DROP INDEX {prefix}ix_{table}_due".format(**table),
    )
    lines = body(current.revise(), "upgrade")
    calls = [line.partition("(")[0] for line in lines if line.startswith("op.")]
    assert sorted(calls) == ["op.drop_column", "op.drop_index", "op.durable_build_index"]
    current.upgrade()
    current.check()


def test_tables_that_the_application_filters_out_are_left_alone(empty, tmp_path):
    host = Application("plain", empty, tmp_path / "alembic")
    host.revise()
    host.upgrade()
    host.execute("DROP INDEX ix_durable_mail_tasks_due")
    env = host.directory / "env.py"
    env.write_text(env.read_text().replace(
        "OPTIONS = {", 'OPTIONS = {\n    "include_object": lambda o, name, *_: name != "durable_mail_tasks",'
    ))  # fmt: skip
    assert body(host.revise(), "upgrade") == ["pass"]


def test_stock_autogenerate_renders_a_new_queue_completely(empty, tmp_path):
    host = Application("plain", empty, tmp_path / "alembic")
    env = host.directory / "env.py"
    env.write_text(env.read_text().replace(', "sa_durable"]', "]"))
    host.revise()
    host.upgrade()
    assert verify(empty, host.metadata) == []


def test_differences_without_an_operation_are_logged(current, caplog):
    table = names(current)
    current.execute("ALTER TABLE {waits} DROP CONSTRAINT {key}".format(
        waits=table["waits"],
        key=("pk_" if table["prefix"] else "") + table["waits"].removeprefix(table["prefix"])
        + ("" if table["prefix"] else "_pkey"),
    ))  # fmt: skip
    with caplog.at_level(logging.WARNING, "sa_durable.alembic"):
        assert body(current.revise(), "upgrade") == ["pass"]
    assert "PRIMARY KEY (task_id, step, event_name) is missing" in caplog.text
