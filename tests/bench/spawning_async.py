"""Workload 2: spawning one by one in an AsyncSession, with either driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sa_durable import AsyncDurable, DurableTask
from tests.bench.models import HANDLERS, SmallTask, filled
from tests.bench.spawning import alternating, bare_insert, fresh_key, row_of
from tests.bench.workload import Bench, Side

Once = Callable[[AsyncEngine, int], Awaitable[None]]
_bare = bare_insert(SmallTask)


async def connection_once(engine: AsyncEngine, number: int) -> None:
    """Limit: the bare statement on an AsyncConnection, in a transaction of its own."""
    async with engine.begin() as connection:
        assert (await connection.execute(_bare, row_of(fresh_key(), number))).first() is not None


async def session_once(engine: AsyncEngine, number: int) -> None:
    """The same in an AsyncSession."""
    async with AsyncSession(engine) as session, session.begin():
        assert (await session.execute(_bare, row_of(fresh_key(), number))).first() is not None


def durable_once(model: type[DurableTask] = SmallTask) -> Once:
    """AsyncDurable.spawn with a fresh key, an AsyncSession and a transaction for each."""
    handler = HANDLERS[model]

    async def once(engine: AsyncEngine, number: int) -> None:
        call = handler.call(order_id=number)
        async with AsyncSession(engine) as session, session.begin():
            assert (await AsyncDurable(session).spawn(call, idempotency_key=fresh_key())).created

    return once


@contextmanager
def _loop(bench: Bench, driver: str) -> Iterator[tuple[asyncio.Runner, AsyncEngine]]:
    url = bench.engine.url.set(drivername=f"postgresql+{driver}")
    with asyncio.Runner() as runner:
        engine = create_async_engine(url)
        yield runner, engine
        runner.run(engine.dispose())


def repeated(once: Once, driver: str, model: type[DurableTask] = SmallTask) -> Side:
    """What does it so many times, in a loop that goes on."""

    def side(bench: Bench, number: int) -> Callable[[], object]:
        bench.once(filled(model))
        runner, engine = bench.enter(_loop(bench, driver))

        async def many() -> None:
            for i in range(number):
                await once(engine, i)

        return lambda: runner.run(many())

    return side


WORKLOADS = [
    alternating(
        2, f"{what}, {driver}", f"bare Core {where}", goal,
        (repeated(limit, driver), repeated(durable_once(), driver)),
    )
    for driver in ("psycopg", "asyncpg")
    for what, where, limit, goal in (
        ("spawn in an AsyncSession", "in an AsyncSession", session_once, 0.85),
        ("spawn beside an AsyncConnection", "on an AsyncConnection", connection_once, None),
    )
]  # fmt: skip
