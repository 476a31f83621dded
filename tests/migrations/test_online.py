"""A live database: locks, interruptions at every point, two migrators, transactions of the caller."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alembic import command
from alembic.autogenerate import render_python_code
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text

from sa_durable.alembic import AddKeyOp, DropKeyOp
from sa_durable.alembic.ddl import Targets
from tests.migrations.host import (
    alembic_process,
    config,
    execute,
    fetch,
    operate,
    scalar,
    schema,
    upgrade,
    wait_for_query,
)
from tests.migrations.rows import PAYMENTS, SOURCE, add, keys
from tests.waiting import in_thread, wait_until, wait_until_gone

ASKED_FOR_THE_LOCK = "COMMIT"  # and doesn't wait for it in a transaction
INDEX_BUILD = "CREATE UNIQUE INDEX CONCURRENTLY%"
HAS_COLUMNS = "SELECT DISTINCT table_name FROM information_schema.columns WHERE column_name = 'key_hold'"
INDEXES = (
    "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE c.relname ~ '^uq_.*_tasks_key' ORDER BY 1"
)
VALID = [("uq_durable_mail_tasks_key", True), ("uq_durable_payments_tasks_key", True)]
HELD_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)
VERSION = "SELECT version_num FROM alembic_version"


@pytest.fixture(autouse=True)
def two_rows(before: Engine) -> None:
    add(before, [{"key": "a"}, {"key": "b"}])
    # Sessions that end have said COMMIT last, too.
    wait_until(lambda: scalar(before, OTHERS) == 0, what="those who prepared this to be gone")


def finish(engine: Engine) -> None:
    """Run the upgrade again, and assert that it does the rest."""
    upgrade(engine)
    assert fetch(engine, INDEXES) == VALID
    assert fetch(engine, VERSION) == [("0002",)]
    assert set(keys(engine).values()) >= {"a", "b"}


def test_killed_between_the_columns_of_two_queues_a_rerun_finishes(before: Engine):
    with _reading(before), alembic_process(before, "upgrade", "head") as migrator:
        wait_for_query(before, f"ALTER TABLE public.{PAYMENTS}%", "relation")
        migrator.kill()
        assert fetch(before, HAS_COLUMNS) == [("durable_mail_tasks",)]
    finish(before)


def test_killed_in_the_index_build_a_rerun_waits_for_the_backend(before: Engine):
    with _snapshot(before) as old, alembic_process(before, "upgrade", "head") as migrator:
        backend = wait_for_query(before, INDEX_BUILD, "virtualxid")
        migrator.kill()
        migrator.wait()
        rerun = in_thread(upgrade, before)
        wait_for_query(before, ASKED_FOR_THE_LOCK)
        assert fetch(before, VERSION) == [("0001",)]
        old.rollback()
        rerun.result(timeout=120)
    wait_until_gone(before, backend)
    finish(before)


def test_an_invalid_index_of_a_killed_build_is_dropped_and_built_again(before: Engine):
    with _snapshot(before), alembic_process(before, "upgrade", "head") as migrator:
        backend = wait_for_query(before, INDEX_BUILD, "virtualxid")
        migrator.kill()
        execute(before, f"SELECT pg_terminate_backend({backend})")
        wait_until_gone(before, backend)
    assert ("uq_durable_mail_tasks_key", False) in fetch(before, INDEXES)

    finish(before)


def test_killed_in_the_backfill_a_rerun_gives_the_rest_their_keys(before: Engine):
    ids = add(before, [{"key": f"k{n}"} for n in range(5000)])
    operate(before, lambda op: op.durable_add_key())
    with before.connect() as worker:
        worker.execute(text(f"SELECT FROM {PAYMENTS} WHERE id = :id FOR UPDATE"), {"id": ids[2500]})
        with alembic_process(before, "upgrade", "head") as migrator:
            wait_until(lambda: scalar(before, f"SELECT count(idempotency_key) FROM {PAYMENTS}") > 1000)
            migrator.kill()
            migrator.wait()
        # Asked while the row is locked: what the killed one has sent goes on once it isn't.
        assert ids[2500] not in keys(before)
    assert fetch(before, VERSION) == [("0001",)]

    finish(before)

    assert keys(before).items() >= {id_: f"k{n}" for n, id_ in enumerate(ids)}.items()


def test_of_two_migrators_the_second_waits_and_finds_everything_done(before: Engine):
    with (
        _snapshot(before) as old,
        alembic_process(before, "upgrade", "head") as first,
        alembic_process(before, "upgrade", "head") as second,
    ):
        wait_for_query(before, INDEX_BUILD, "virtualxid")
        wait_for_query(before, ASKED_FOR_THE_LOCK)
        old.rollback()
        outputs = [first.communicate(timeout=120)[0], second.communicate(timeout=120)[0]]
        assert (first.returncode, second.returncode) == (0, 0), outputs
    assert sorted("Running upgrade 0001 -> 0002" in output for output in outputs) == [False, True]
    assert sorted("waiting for it" in output for output in outputs) == [False, True]
    finish(before)


def test_a_short_wait_for_the_exclusive_lock_is_retried(before: Engine, caplog):
    with _reading(before) as reader, caplog.at_level(logging.WARNING, "sa_durable.alembic"):
        adding = in_thread(operate, before, lambda op: op.durable_add_key(PAYMENTS, lock_timeout=0.05))
        wait_until(lambda: "attempt 2 of 30" in caplog.text)
        # whoever came meanwhile isn't stuck behind the ALTER TABLE for as long as there is a reader
        execute(before, "SET statement_timeout = '60s'", f"UPDATE {PAYMENTS} SET attempt = 2")
        reader.rollback()
        adding.result(timeout=120)
    assert VALID[1] in fetch(before, INDEXES)


def test_without_the_lock_it_gives_up_and_can_be_run_again(before: Engine):
    unchanged = schema(before)
    with (
        _reading(before),
        pytest.raises(CommandError, match=r"1 attempts of 0\.05 s.*run the migration again"),
    ):
        operate(before, lambda op: op.durable_add_key(PAYMENTS, lock_timeout=0.05, attempts=1))
    assert schema(before) == unchanged
    finish(before)


def test_the_sessions_settings_are_what_they_were(before: Engine):
    settings = text(
        "SELECT name, setting FROM pg_settings WHERE name ~ '_timeout$|^enable_|plan_cache_mode' ORDER BY name"
    )
    with before.connect() as connection:
        connection.execute(text("SET lock_timeout = '7s'"))
        connection.execute(text("SET enable_hashjoin = off"))
        connection.commit()
        was = connection.execute(settings).all()
        connection.commit()
        command.upgrade(config(connection), "head")
        assert connection.execute(settings).all() == was
        assert connection.scalar(text(HELD_LOCKS)) == 0


def test_in_a_transaction_of_the_caller_everything_is_part_of_it(before: Engine):
    unchanged = schema(before)
    with before.connect() as connection:
        connection.begin()
        command.upgrade(config(connection), "head")
        assert connection.scalar(text(f"SELECT count(idempotency_key) FROM {PAYMENTS}")) == 2
        assert connection.in_transaction()
        connection.rollback()
    assert schema(before) == unchanged

    with before.begin() as connection:
        command.upgrade(config(connection), "head")
    assert fetch(before, INDEXES) == VALID
    assert len(keys(before)) == 2
    with before.begin() as connection:
        command.downgrade(config(connection), "0001")
    assert schema(before) == unchanged


def test_in_a_transaction_of_the_caller_an_invalid_index_is_built_again(before: Engine):
    operate(before, lambda op: op.durable_add_key())
    execute(
        before,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_durable_mail_tasks_key'::regclass",
    )

    with before.begin() as connection:
        Operations(MigrationContext.configure(connection)).durable_add_key(source=SOURCE)

    assert fetch(before, INDEXES) == VALID


def test_a_connection_that_autocommits_is_upgraded_online(before: Engine):
    with before.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT 1"))
        [_, report] = Operations(MigrationContext.configure(connection)).durable_add_key(source=SOURCE)
    assert report.keyed == 2
    assert fetch(before, INDEXES) == VALID


def test_earlier_and_later_parts_of_the_revision_are_committed(before: Engine):
    def revision(op: Operations) -> None:
        op.execute("CREATE TABLE earlier (n int)")
        op.durable_add_key()
        op.execute("CREATE TABLE later (n int)")

    operate(before, revision)
    assert scalar(before, "SELECT to_regclass('earlier') IS NOT NULL AND to_regclass('later') IS NOT NULL")


def test_operations_know_their_reverse_and_describe_themselves():
    seen = []

    class Recorder:
        def invoke(self, op):
            seen.append(op)

    AddKeyOp.durable_add_key(Recorder(), "t", schema="s")
    AddKeyOp.durable_add_key(Recorder())
    add_one, add_all = seen
    assert add_one.to_diff_tuple() == ("durable_add_key", "s", "t")
    assert isinstance(add_one.reverse(), DropKeyOp)
    assert add_one.reverse().to_diff_tuple() == ("durable_drop_key", "s", "t")
    assert add_one.reverse().reverse().to_diff_tuple() == add_one.to_diff_tuple()
    assert add_all.reverse().to_diff_tuple() == ("durable_drop_key", None, None)
    assert add_all.reverse().reverse().to_diff_tuple() == ("durable_add_key", None, None)


@pytest.mark.parametrize(
    ("arguments", "keywords", "rendered"),
    [
        (["t"], {"schema": "s"}, "('t', schema='s')"),
        (["t"], {}, "('t')"),
        ([], {"schema": "s"}, "(schema='s')"),
        ([], {}, "()"),
    ],
)
def test_key_operations_are_rendered_as_they_were_called(arguments, keywords, rendered):
    class Renderer:
        def invoke(self, op):
            return render_python_code(UpgradeOps([op]))

    assert f"op.durable_add_key{rendered}\n" in AddKeyOp.durable_add_key(Renderer(), *arguments, **keywords)
    op = AddKeyOp(Targets(*arguments, **keywords)).reverse()
    assert f"op.durable_drop_key{rendered}\n" in render_python_code(UpgradeOps([op]))


@pytest.mark.parametrize(
    "options",
    [
        {"hold": "never", "source": "name"},
        {"batch_size": 0, "source": "name"},
        {"source": " "},
        {"lock_timeout": 0},
    ],
)
def test_options_that_can_not_work_are_refused(before: Engine, options):
    with pytest.raises(ValueError):
        operate(before, lambda op: op.durable_add_key(**options))
    assert fetch(before, HAS_COLUMNS) == []


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    """Hold a transaction that has read the table, and blocks changes of its schema."""
    with engine.connect() as connection:
        connection.execute(text(f"SELECT FROM {PAYMENTS}"))
        yield connection


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """Hold a snapshot, without a lock on any table. A concurrent index build waits for older snapshots."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("SELECT 1"))
        yield connection
