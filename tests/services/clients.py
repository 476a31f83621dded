"""One vocabulary for scenarios, whichever client and driver they go through."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sa_durable import AsyncDurable, Durable

CLIENTS = ("psycopg", "psycopg async", "asyncpg")


class Client(Protocol):
    """A session and its spawn service, both called without `await`."""

    session: Any
    durable: Any
    engine: Engine
    """The synchronous one, for events."""

    def savepoint(self) -> Any:
        """Begin one. Call commit() or rollback() on what is returned."""


@dataclass
class SyncClient:
    session: Session
    durable: Durable
    engine: Engine

    def savepoint(self) -> Any:
        return self.session.begin_nested()


class Awaited:
    """`target`, whose coroutines run to their end when they are called."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target, self._runner = target, runner

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            value = attribute(*args, **kwargs)
            return self._runner.run(value) if inspect.iscoroutine(value) else value

        return call


class AsyncClient:
    def __init__(self, session: AsyncSession, engine: Engine, runner: asyncio.Runner) -> None:
        self.session = Awaited(session, runner)
        self.durable = Awaited(AsyncDurable(session), runner)
        self.engine = engine
        self._runner = runner

    def savepoint(self) -> Any:
        async def begin() -> Any:
            return await self.session._target.begin_nested()

        return Awaited(self._runner.run(begin()), self._runner)


@contextmanager
def open_client(kind: str, url: str, *, isolation: str | None = None, **settings: str) -> Iterator[Client]:
    """A client with an engine of its own; `settings` are PostgreSQL's, for its connections."""
    of_engine = {"isolation_level": isolation} if isolation else {}
    if kind == "psycopg":
        engine = create_engine(url, connect_args=_psycopg(settings), **of_engine)
        with Session(engine) as session:
            yield SyncClient(session, Durable(session), engine)
        engine.dispose()
        return
    driver = {"psycopg async": "postgresql+psycopg", "asyncpg": "postgresql+asyncpg"}[kind]
    arguments = {"server_settings": settings} if kind == "asyncpg" else _psycopg(settings)
    with asyncio.Runner() as runner:
        async_engine = create_async_engine(
            make_url(url).set(drivername=driver), connect_args=arguments, **of_engine
        )
        session = AsyncSession(async_engine)
        try:
            yield AsyncClient(session, async_engine.sync_engine, runner)
        finally:
            runner.run(session.close())
            runner.run(async_engine.dispose())


def _psycopg(settings: dict[str, str]) -> dict[str, Any]:
    if not settings:
        return {}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return {
        "options": options,
        "prepare_threshold": 0,
    }  # prepared at once: plans are what the settings are about
