"""`alembic upgrade head`, `downgrade` and back, on empty and on populated databases."""

from __future__ import annotations

import re

import pytest
from alembic import command
from sqlalchemy import Engine

from sa_durable.demo.models import Base
from tests.migrations.host import config, downgrade, execute, fetch, operate, scalar, schema, upgrade
from tests.migrations.rows import PAYMENTS, SOURCE, add, add_many, keys

KEY_COLUMNS = "('idempotency_key', 'key_hold', 'key_expires_at')"
DIGEST = (
    f"SELECT count(*), sum(hashtextextended((to_jsonb(t) - 'idempotency_key' - 'key_hold' - 'key_expires_at')::text, 0))"
    f" FROM {PAYMENTS} t"
)
# Who should have a key: per key its oldest active row, and where none is active the oldest
HEIRS = (
    f"SELECT DISTINCT ON (key) id FROM (SELECT *, {SOURCE} AS key FROM {PAYMENTS}) t"
    " ORDER BY key, (state IN ('pending', 'running', 'sleeping')) DESC, created_at, id"
)
IDS = "SELECT count(*), sum(hashtextextended(id::text, 0))"
KEYED = f"{IDS} FROM {PAYMENTS} WHERE idempotency_key IS NOT NULL"


def test_upgrade_downgrade_upgrade_works_on_an_empty_database(empty: Engine):
    upgrade(empty)
    first = schema(empty)

    downgrade(empty, "base")
    assert schema(empty) == []

    upgrade(empty)
    assert schema(empty) == first


def test_create_all_and_upgrade_head_give_the_same_schema(empty: Engine):
    Base.metadata.create_all(empty)
    created = schema(empty)
    Base.metadata.drop_all(empty)

    upgrade(empty)

    assert schema(empty) == created
    assert any("uq_durable_mail_tasks_key" in str(row) for row in created)


def test_alembic_check_finds_nothing_to_do_after_upgrade_head(empty: Engine):
    upgrade(empty)
    with empty.connect() as connection:
        command.check(config(connection))


def test_the_first_revision_has_no_trace_of_keys(before: Engine):
    assert not [
        row
        for row in schema(before)
        if re.search("idempotency|key_hold|key_expires|tasks_key", str(row[3:5]))
    ]


def test_a_hundred_thousand_rows_come_through_down_and_up_again(before: Engine):
    add_many(before, 100_000)
    [digest] = fetch(before, DIGEST)

    upgrade(before)
    assert fetch(before, DIGEST) == [digest]
    [keyed] = fetch(before, KEYED)
    assert [keyed] == fetch(before, f"{IDS} FROM ({HEIRS}) heirs")
    assert 90_000 <= keyed[0] < 100_000
    wrong = f"idempotency_key <> {SOURCE} OR key_hold <> 'active' OR (key_hold IS NULL) <> (idempotency_key IS NULL)"
    assert scalar(before, f"SELECT count(*) FROM {PAYMENTS} WHERE {wrong}") == 0

    downgrade(before, "0001")
    assert fetch(before, DIGEST) == [digest]

    upgrade(before)
    assert fetch(before, KEYED) == [keyed]

    downgrade(before, "base")
    upgrade(before)


def test_an_upgraded_database_has_the_schema_of_an_empty_one(empty: Engine):
    upgrade(empty)
    fresh = schema(empty)
    downgrade(empty, "0001")
    add(empty, [{"key": "a"}])

    upgrade(empty)

    assert schema(empty) == fresh


def test_a_queue_table_that_no_model_names_gets_keys_too_in_any_schema(before: Engine):
    legacy = '"Old: 100% odd".durable_legacy_tasks'
    execute(
        before,
        'CREATE SCHEMA "Old: 100% odd"',
        f"CREATE TABLE {legacy} (LIKE {PAYMENTS} INCLUDING ALL)",
        f"COMMENT ON TABLE {legacy} IS 'sa_durable:legacy:tasks'",
    )
    [id_] = add(before, [{"key": "k"}], legacy)

    upgrade(before)

    assert keys(before, legacy) == {id_: "k"}
    old = [row for row in schema(before) if row[1] == "Old: 100% odd"]
    assert [row[4] for row in old if row[0] == "column"][-3:] == [
        "idempotency_key",
        "key_hold",
        "key_expires_at",
    ]
    assert [row[4] for row in old if "uq_durable_legacy_tasks_key" in str(row)] == [True]
    assert ("ck_durable_legacy_tasks_key", True) in [
        (row[3], row[5]) for row in old if row[0] == "constraint"
    ]

    downgrade(before, "0001")
    assert (
        scalar(before, f"SELECT count(*) FROM information_schema.columns WHERE column_name IN {KEY_COLUMNS}")
        == 0
    )


def test_one_schema_or_one_table_can_be_asked_for(before: Engine):
    execute(
        before,
        "CREATE SCHEMA other",
        f"CREATE TABLE other.{PAYMENTS} (LIKE {PAYMENTS} INCLUDING ALL)",
        f"COMMENT ON TABLE other.{PAYMENTS} IS 'sa_durable:payments:tasks'",
    )
    having = f"SELECT DISTINCT table_schema, table_name FROM information_schema.columns WHERE column_name IN {KEY_COLUMNS}"

    operate(before, lambda op: op.durable_add_key(schema="other"))
    assert fetch(before, having) == [("other", PAYMENTS)]

    operate(before, lambda op: op.durable_drop_key(schema="other"))
    operate(before, lambda op: op.durable_add_key("durable_mail_tasks"))
    assert fetch(before, having) == [("public", "durable_mail_tasks")]

    operate(before, lambda op: op.durable_drop_key("durable_mail_tasks", schema="public"))
    operate(before, lambda op: op.durable_add_key(PAYMENTS, schema="other"))
    assert fetch(before, having) == [("other", PAYMENTS)]


def test_a_column_of_the_applications_own_is_not_taken_over(before: Engine):
    execute(before, f"ALTER TABLE {PAYMENTS} ADD COLUMN idempotency_key varchar(40)")
    unchanged = schema(before)

    with pytest.raises(
        Exception, match=r"idempotency_key of public\.durable_payments_tasks is character varying"
    ):
        upgrade(before)

    assert schema(before) == unchanged


def test_an_invalid_source_is_refused_before_anything_changes(before: Engine):
    unchanged = schema(before)

    with pytest.raises(Exception, match="haeders"):
        operate(before, lambda op: op.durable_add_key(source="haeders->>'idempotency_key'"))

    assert schema(before) == unchanged
