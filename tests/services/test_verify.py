"""`verify` finds each kind of difference, and nothing where there is none, on every pair of PostgreSQL and SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, Index, MetaData, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_durable import DurableTask, verify
from tests.databases import throwaway, url_of
from tests.shop import Base

pytestmark = pytest.mark.service

TABLE = "durable_mail_tasks"


@pytest.fixture(scope="module")
def fresh(server_url: str) -> Iterator[Engine]:
    with throwaway(server_url, Base.metadata) as engine:
        yield engine


def found(engine: Engine, *changes: str) -> list[str]:
    """What differs after `changes`, which are taken back."""
    with engine.connect() as connection:
        for change in changes:
            connection.exec_driver_sql(change)
        differences = verify(connection, Base.metadata)
        assert connection.in_transaction() == bool(changes)  # a transaction of the caller's stays open
        connection.rollback()
    return [str(difference) for difference in differences]


DIFFERENCES = {
    "predicate": (
        [f"DROP INDEX ix_{TABLE}_due", f"CREATE INDEX ix_{TABLE}_due ON {TABLE} (available_at)"],
        f"index ix_{TABLE}_due is btree (available_at), should be btree (available_at) WHERE",
    ),
    "include": (
        [
            f"DROP INDEX ix_{TABLE}_running",
            f"CREATE INDEX ix_{TABLE}_running ON {TABLE} (id) INCLUDE (token) WHERE state = 'running'",
        ],
        "INCLUDE (token)",
    ),
    "operator class": (
        [
            f"DROP INDEX ix_{TABLE}_finished",
            f"CREATE INDEX ix_{TABLE}_finished ON {TABLE} (finished_at DESC) WHERE finished_at IS NOT NULL",
        ],
        "finished_at DESC",
    ),
    "method": (
        [
            f"DROP INDEX ix_{TABLE}_parent",
            f"CREATE INDEX ix_{TABLE}_parent ON {TABLE} USING hash (parent_id) WHERE parent_id IS NOT NULL",
        ],
        "is hash (parent_id)",
    ),
    "unique": (
        [
            f"DROP INDEX uq_{TABLE}_key",
            f"CREATE INDEX uq_{TABLE}_key ON {TABLE} (idempotency_key)",
        ],
        "should be UNIQUE btree (idempotency_key)",
    ),
    "invalid": (
        [f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'uq_{TABLE}_key'::regclass"],
        "INVALID, should be UNIQUE",
    ),
    "storage": (
        [f"ALTER INDEX ix_{TABLE}_due SET (fillfactor = 50)"],
        "WITH (fillfactor='50')",
    ),
    "missing index": ([f"DROP INDEX ix_{TABLE}_cancel"], f"index ix_{TABLE}_cancel is missing: btree (cancel_at)"),
    "left-over index": ([f"CREATE INDEX ix_{TABLE}_old ON {TABLE} (attempt)"], f"ix_{TABLE}_old is not of this version"),
    "check": (
        [
            f"ALTER TABLE {TABLE} DROP CONSTRAINT ck_{TABLE}_state",
            f"ALTER TABLE {TABLE} ADD CONSTRAINT ck_{TABLE}_state CHECK (state <> 'no')",
        ],
        f"check ck_{TABLE}_state is CHECK ((state <> 'no'::text)), should be CHECK ((state = ANY",
    ),
    "check not valid": (
        [
            f"ALTER TABLE {TABLE} DROP CONSTRAINT ck_{TABLE}_key",
            f"ALTER TABLE {TABLE} ADD CONSTRAINT ck_{TABLE}_key CHECK (true) NOT VALID",
        ],
        "NOT VALID, should be",
    ),
    "missing column": ([f"ALTER TABLE {TABLE} DROP COLUMN awaited"], "column awaited is missing: boolean NOT NULL"),
    "type": (
        [f"ALTER TABLE {TABLE} ALTER claimed_by TYPE varchar(9)"],
        "column claimed_by is character varying(9), should be text",
    ),
    "nullable": ([f"ALTER TABLE {TABLE} ALTER token DROP NOT NULL"], "should be bigint NOT NULL"),
    "collation": (
        ["ALTER TABLE durable_mail_tasks ALTER idempotency_key TYPE text"],
        'should be text COLLATE "C"',
    ),
    "default": ([f"ALTER TABLE {TABLE} ALTER attempt DROP DEFAULT"], "should be integer NOT NULL DEFAULT 1"),
    "primary key": (
        ["ALTER TABLE durable_mail_waits DROP CONSTRAINT durable_mail_waits_pkey"],
        "key PRIMARY KEY (task_id, step, event_name) is missing",
    ),
    "foreign key": (
        ["ALTER TABLE durable_mail_runs DROP CONSTRAINT durable_mail_runs_task_id_fkey"],
        "key FOREIGN KEY (task_id) REFERENCES (id) ON DELETE CASCADE is missing",
    ),
    "table": (["DROP TABLE durable_mail_events"], "table durable_mail_events is missing"),
}  # fmt: skip


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.owner
def test_each_difference_is_found_and_said_in_a_line(fresh, difference):
    changes, said = DIFFERENCES[difference]
    lines = found(fresh, *changes)
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.owner
def test_nothing_is_found_where_nothing_differs(fresh):
    assert found(fresh) == []
    assert verify(fresh, Base.metadata) == []
    assert (
        found(fresh, f"CREATE INDEX by_hand ON {TABLE} (attempt)", f"ALTER TABLE {TABLE} ADD own integer")
        == []
    )
    with fresh.connect() as connection:
        leftovers = "SELECT count(*) FROM pg_class WHERE relpersistence = 't'"
        assert connection.scalar(text(leftovers)) == 0


def test_through_an_engine_in_autocommit(fresh):
    assert verify(fresh.execution_options(isolation_level="AUTOCOMMIT"), Base.metadata) == []


def test_through_an_async_engine(fresh):
    async def check() -> object:
        engine = create_async_engine(url_of(fresh).replace("+psycopg", "+asyncpg"))
        async with engine.connect() as connection:
            differences = await connection.run_sync(verify, Base.metadata)
        await engine.dispose()
        return differences

    assert asyncio.run(check()) == []


def test_verify_with_a_schema_naming_convention_and_own_columns(server_url):
    class Host(DeclarativeBase):
        metadata = MetaData(
            schema="app", naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(constraint_name)s"}
        )

    class JobTask(DurableTask, Host):
        __queue__ = "jobs"
        __table_args__ = (Index("ix_durable_jobs_tasks_own", "own"),)
        own: Mapped[int] = mapped_column(default=1)

    with throwaway(server_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA app"))
            connection.execute(text("CREATE SCHEMA tenant"))
            Host.metadata.create_all(connection)
            tenant = connection.execution_options(schema_translate_map={"app": "tenant"})
            Host.metadata.create_all(tenant)
        assert verify(engine, Host.metadata) == []
        with engine.begin() as connection:
            connection.execute(text("DROP INDEX tenant.ix_durable_jobs_tasks_due"))
        assert verify(engine, Host.metadata) == []
        translated = create_engine(engine.url, execution_options={"schema_translate_map": {"app": "tenant"}})
        (difference,) = verify(translated, Host.metadata)
        assert str(difference).startswith(
            "tenant.durable_jobs_tasks: index ix_durable_jobs_tasks_due is missing"
        )
        translated.dispose()
