"""A database with the tables of tests/testing/app.py, and the test helpers in their sync and async versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sa_durable import Call, Durable
from sa_durable.testing import (
    Idle,
    assert_not_spawned,
    assert_not_spawned_async,
    assert_spawned,
    assert_spawned_async,
    run_until_idle,
    run_until_idle_async,
)
from tests.databases import database_fixture, emptied, engine_fixture
from tests.services.clients import CLIENTS
from tests.testing import app
from tests.testing.app import Base, MainTask, SideTask

ROOT = Path(__file__).parents[2]


testing_url = database_fixture(Base.metadata)
testing_engine = engine_fixture("testing_url")


@pytest.fixture
def engine(testing_engine: Engine) -> Engine:
    """An engine on these tests' tables, all empty."""
    app.calls.clear()
    app.gate.clear()
    return emptied(testing_engine, Base.metadata)


class Helpers:
    """The functions of sa_durable.testing, called without `await`, and what tests do besides."""

    def __init__(self, engine: Engine, tested: Any, runner: asyncio.Runner | None) -> None:
        self.engine, self.tested, self._runner = engine, tested, runner

    def run(self, *queues: Any, **options: Any) -> Idle:
        queues = queues or (MainTask, SideTask)
        if self._runner is None:
            return run_until_idle(self.tested, *queues, **options)
        return self._runner.run(run_until_idle_async(self.tested, *queues, **options))

    def spawned(self, *what: Any, **options: Any) -> Any:
        if self._runner is None:
            return assert_spawned(self.tested, *what, **options)
        return self._runner.run(assert_spawned_async(self.tested, *what, **options))

    def not_spawned(self, *what: Any, **options: Any) -> None:
        if self._runner is None:
            return assert_not_spawned(self.tested, *what, **options)
        return self._runner.run(assert_not_spawned_async(self.tested, *what, **options))

    def spawned_in_a_session(self, call: Call[Any, Any], *what: Any) -> Any:
        """Spawn, and assert it in the same session, which never commits."""
        if self._runner is None:
            with Session(self.tested) as session:
                Durable(session).spawn(call)
                return assert_spawned(session, *what).name

        async def use() -> Any:
            async with AsyncSession(self.tested) as session:
                await session.run_sync(lambda s: Durable(s).spawn(call))
                return (await assert_spawned_async(session, *what)).name

        return self._runner.run(use())

    def spawn(self, call: Call[Any, Any], **options: Any) -> Any:
        with Session(self.engine) as session, session.begin():
            return Durable(session).spawn(call, **options)

    def emit(self, name: str, payload: Any = None) -> None:
        with Session(self.engine) as session, session.begin():
            Durable(session).emit_event(MainTask, name, payload)

    def result(self, spawned: Any) -> Any:
        with Session(self.engine) as session:
            return Durable(session).result(spawned)

    def rows(self, model: Any) -> list[Any]:
        with Session(self.engine) as session:
            rows = list(session.scalars(select(model).order_by(model.id)))
            session.expunge_all()
            return rows


@pytest.fixture(params=CLIENTS)
def helpers(request: pytest.FixtureRequest, engine: Engine, testing_url: str) -> Iterator[Helpers]:
    """The test helpers on an engine of each driver, in the sync or the async version."""
    if request.param == "psycopg":
        yield Helpers(engine, engine, None)
        return
    driver = {"psycopg async": "postgresql+psycopg", "asyncpg": "postgresql+asyncpg"}[request.param]
    async_engine = create_async_engine(make_url(testing_url).set(drivername=driver))
    with asyncio.Runner() as runner:
        yield Helpers(engine, async_engine, runner)
        runner.run(async_engine.dispose())
