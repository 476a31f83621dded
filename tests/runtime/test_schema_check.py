"""A worker that starts asks first whether the schema is what its code needs."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, text

from sa_durable import SchemaOutdated
from sa_durable.runtime import Worker
from tests.databases import throwaway, url_of
from tests.runtime.app import Base, OtherTask, WorkTask


async def started(worker: Worker) -> None:
    async with worker:
        pass


@pytest.mark.owner
def test_worker_refuses_an_outdated_schema_with_advice(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE durable_work_tasks DROP COLUMN awaited"))
            connection.execute(text("DROP INDEX uq_durable_work_tasks_key"))
        with pytest.raises(SchemaOutdated, match=r"column awaited is missing.*Run `alembic upgrade head`"):
            asyncio.run(started(Worker(engine, [WorkTask])))
        asyncio.run(started(Worker(engine, [OtherTask])))  # whose tables are as they should be


@pytest.mark.owner
def test_the_command_says_so_in_a_line(server_url):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE durable_work_tasks DROP COLUMN awaited"))
        command = ["worker", "tests.runtime.app", "--queue", "work", "--database-url", url_of(engine)]
        said = subprocess.run(
            [sys.executable, "-m", "sa_durable.cli", *command], capture_output=True, text=True, check=False
        )
    assert said.returncode == 1
    assert "alembic upgrade head" in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.owner
def test_what_it_can_work_with_is_said_and_no_more(server_url, caplog):
    with throwaway(server_url, Base.metadata) as engine:
        with engine.begin() as connection:
            connection.execute(text("DROP INDEX ix_durable_work_tasks_due"))
        with caplog.at_level(logging.WARNING, "sa_durable.worker"):
            asyncio.run(started(Worker(engine, [WorkTask])))
        assert "index ix_durable_work_tasks_due is missing" in caplog.text


def test_it_starts_without_the_database(caplog):
    engine = create_engine("postgresql+psycopg://nobody@/nothing?host=/nowhere")
    with caplog.at_level(logging.WARNING, "sa_durable.worker"):
        asyncio.run(started(Worker(engine, [WorkTask])))
    assert "schema not checked (OperationalError" in caplog.text


@pytest.mark.owner
@pytest.mark.direct(reason="the pooler's connections are all one role's")
def test_a_role_that_may_make_no_temporary_tables_starts_all_the_same(server_url, caplog):
    with throwaway(server_url, Base.metadata) as engine:
        role = f"worker_{engine.url.database}"
        with engine.begin() as connection:
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
            connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
            connection.execute(text(f"REVOKE TEMPORARY ON DATABASE {engine.url.database} FROM PUBLIC"))
        try:
            with caplog.at_level(logging.WARNING, "sa_durable.worker"):
                asyncio.run(started(Worker(engine.url.set(username=role), [WorkTask])))
            assert "schema not checked (InsufficientPrivilege" in caplog.text
        finally:
            with engine.begin() as connection:
                connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))
