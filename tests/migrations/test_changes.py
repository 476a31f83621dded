"""Indexes, checks and columns are changed while other sessions use the table, and after interruptions."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from tests.migrations.host import execute, fetch, operate, psql, scalar, schema, wait_for_query
from tests.migrations.hosts.plain.models import Base
from tests.waiting import in_thread

TABLE = "durable_mail_tasks"
INDEX, OTHER = "ix_durable_mail_tasks_due", "btree (available_at, id) WHERE (state = 'sleeping'::text)"
CHECK, NARROW = "ck_durable_mail_tasks_state", "CHECK ((state = 'pending'::text))"
INDEXES = (
    "SELECT x.relname, regexp_replace(pg_get_indexdef(x.oid), '^.*? USING ', ''), i.indisvalid"
    " FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid"
    f" WHERE i.indrelid = '{TABLE}'::regclass AND x.relname LIKE '{INDEX}%' ORDER BY 1"
)
CHECKS = f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = '{TABLE}'::regclass AND conname = '{CHECK}'"


@pytest.fixture
def queue(empty: Engine) -> Engine:
    Base.metadata.create_all(empty)
    return empty


def build(operations: Any) -> None:
    operations.durable_build_index(INDEX, TABLE, OTHER)


def test_the_old_index_serves_until_the_new_one_is_there(queue):
    (old,) = fetch(queue, INDEXES)
    with queue.connect() as reader:
        reader.execution_options(isolation_level="REPEATABLE READ")
        reader.execute(text("SELECT 1"))  # a snapshot, which the build has to outlive
        building = in_thread(operate, queue, build)
        wait_for_query(queue, "CREATE INDEX CONCURRENTLY%", "virtualxid")
        assert fetch(queue, INDEXES)[0] == old
        with queue.begin() as writer:  # nobody is kept from writing meanwhile
            writer.execute(text(f"INSERT INTO {TABLE} (id, run_id, name, params) VALUES"
                                " (gen_random_uuid(), gen_random_uuid(), 'n', '{}')"))  # fmt: skip
        reader.rollback()
        building.result(timeout=120)
    assert fetch(queue, INDEXES) == [(INDEX, OTHER, True)]


# What an interrupted build can leave behind: SQL, from a table with the old index
LEFT = {
    "a new one that is not complete": f"CREATE INDEX {INDEX}_new ON {TABLE} (available_at, id) WHERE state = 'sleeping';"
    f" UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}_new'::regclass",
    "a new one of yet another definition": f"CREATE INDEX {INDEX}_new ON {TABLE} (claimed_by)",
    "both": f"CREATE INDEX {INDEX}_new ON {TABLE} (available_at, id) WHERE state = 'sleeping'",
    "the new one under its other name": f"DROP INDEX {INDEX};"
    f" CREATE INDEX {INDEX}_new ON {TABLE} (available_at, id) WHERE state = 'sleeping'",
    "an invalid old one": f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass",
    "none": f"DROP INDEX {INDEX}",
    "all done": f"DROP INDEX {INDEX}; CREATE INDEX {INDEX} ON {TABLE} (available_at, id) WHERE state = 'sleeping'",
}


@pytest.mark.parametrize("left", LEFT)
def test_a_rerun_of_an_index_build_finishes_from_wherever_it_stopped(queue, left):
    execute(queue, *LEFT[left].split(";"))
    before = scalar(queue, "SELECT to_regclass(:i)::oid", i=INDEX)
    operate(queue, build)
    assert fetch(queue, INDEXES) == [(INDEX, OTHER, True)]
    if left == "all done":
        assert scalar(queue, "SELECT to_regclass(:i)::oid", i=INDEX) == before


def test_a_violated_check_fails_and_can_be_finished_later(queue):
    execute(queue, f"INSERT INTO {TABLE} (id, run_id, name, params, state) VALUES"
                   " (gen_random_uuid(), gen_random_uuid(), 'n', '{}', 'sleeping')")  # fmt: skip

    def narrow(operations: Any) -> None:
        operations.durable_set_check(CHECK, TABLE, NARROW)

    with pytest.raises(IntegrityError, match=CHECK):
        operate(queue, narrow)
    assert fetch(queue, CHECKS) == [(f"{NARROW} NOT VALID",)]
    execute(queue, f"UPDATE {TABLE} SET state = 'pending'")
    operate(queue, narrow)
    assert fetch(queue, CHECKS) == [(NARROW,)]


def test_columns_are_added_and_dropped_once(queue):
    def add(operations: Any) -> None:
        note = sa.Column("note", sa.Text(), server_default="none", nullable=False)
        operations.durable_add_column(TABLE, note)

    for _ in range(2):
        operate(queue, add)
    assert scalar(queue, "SELECT count(*) FROM pg_attribute WHERE attname = 'note' AND attnotnull") == 1
    for _ in range(2):
        operate(queue, lambda operations: operations.durable_drop_column(TABLE, "note"))
    assert scalar(queue, "SELECT count(*) FROM pg_attribute WHERE attname = 'note'") == 0


def everything(operations: Any) -> None:
    build(operations)
    operations.durable_drop_index("ix_durable_mail_tasks_parent", TABLE)
    operations.durable_set_check(CHECK, TABLE, NARROW)
    operations.durable_drop_check("ck_durable_mail_tasks_key", TABLE)
    operations.durable_add_column(TABLE, sa.Column("note", sa.Text(), server_default="it's", nullable=False))
    operations.durable_drop_column(TABLE, "max_duration")


def test_in_a_callers_transaction_nothing_is_committed(queue):
    before = schema(queue)
    with queue.connect() as connection, connection.begin() as transaction:
        everything(Operations(MigrationContext.configure(connection)))
        (row,) = connection.execute(text(INDEXES)).all()
        assert tuple(row) == (INDEX, OTHER, True)
        transaction.rollback()
    assert schema(queue) == before


def test_the_script_for_psql_does_the_same_as_online(queue, psql_program: str):
    def script(operation: Callable[[Any], None]) -> str:
        output = io.StringIO()
        context = MigrationContext.configure(
            dialect_name="postgresql", opts={"as_sql": True, "output_buffer": output}
        )
        with context.begin_transaction():
            operation(Operations(context))
        return output.getvalue()

    psql(queue, psql_program, script(everything))
    written = schema(queue)
    Base.metadata.drop_all(queue)
    Base.metadata.create_all(queue)
    operate(queue, everything)
    assert schema(queue) == written
