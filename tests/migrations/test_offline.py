"""`alembic upgrade --sql`, piped through psql, does what the online upgrade does."""

from __future__ import annotations

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Engine

from sa_durable.alembic import ONCE
from tests.migrations.host import downgrade, execute, fetch, psql, schema, script, upgrade
from tests.migrations.rows import PAYMENTS, add_many

KEYS = f"SELECT id, idempotency_key, key_hold FROM {PAYMENTS} ORDER BY id"


def test_the_script_gives_the_same_schema_and_the_same_keys_as_online(empty: Engine, psql_program: str):
    psql(empty, psql_program, script("0001"))
    add_many(empty, 3000)
    upgrade(empty)
    online_schema, online_keys = schema(empty), fetch(empty, KEYS)
    downgrade(empty, "0001")

    said = psql(empty, psql_program, script("0001:head"))

    assert schema(empty) == online_schema
    assert fetch(empty, KEYS) == online_keys
    assert fetch(empty, "SELECT version_num FROM alembic_version") == [("0002",)]
    assert f"public.{PAYMENTS}: 270 rows are left without a key (candidate)" in said


def test_the_script_can_be_run_again_and_repairs_what_it_finds(empty: Engine, psql_program: str):
    upgrade(empty)
    whole = schema(empty)
    execute(
        empty,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_durable_mail_tasks_key'::regclass",
        f"ALTER TABLE {PAYMENTS} DROP COLUMN key_expires_at",
    )

    psql(empty, psql_program, script("0001:head"))

    assert schema(empty) == whole


def test_the_downgrade_script_takes_keys_out_and_leaves_the_rows(before: Engine, psql_program: str):
    add_many(before, 10)
    without = schema(before)
    upgrade(before)

    psql(before, psql_program, script("0002:0001", down=True))

    assert schema(before) == without
    assert fetch(before, f"SELECT count(*) FROM {PAYMENTS}") == [(10,)]


def test_keys_computed_in_python_are_refused_in_a_script():
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True})
    with pytest.raises(CommandError, match="run this revision online"):
        Operations(context).durable_add_key(source=ONCE)
