"""sa_durable. As its docs say, and as its users get it: a Session for each spawn, `Worker(engine, [queue])`."""

from __future__ import annotations

import asyncio
import sys
from uuid import uuid4

from contests import RACERS, Arrival, race, raced
from speak import Answer, Hook, Order, Stopwatch, repeated_sync, serve, timed_sync, workloads
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session
from witness import Drain, Witness

from sa_durable import AsyncDurable, AsyncTaskContext, Durable, DurableTask, Worker

URL = make_url(sys.argv[1]).set(drivername="postgresql+psycopg")
DSN = URL.set(drivername="postgresql").render_as_string(hide_password=False)
# What drains fastest on two cores (10 to 300 were tried, which differ little).
BEST_CONCURRENCY = 100


class Base(DeclarativeBase):
    pass


class BenchTask(DurableTask, Base):
    __queue__ = "bench"


TASKS = BenchTask.__table__.name
STEPS = BenchTask.Checkpoint.__table__.name
witness = Witness(DSN)
handled = Hook()


@BenchTask.handler()
async def noop(ctx: AsyncTaskContext, number: int) -> int:
    handled.call(number)
    return number


@BenchTask.handler()
async def stepping(ctx: AsyncTaskContext, number: int) -> float:
    with Stopwatch() as watch:
        for i in range(number):
            await ctx.step(f"step {i}", one, i)
    return watch.seconds


def one(i: int) -> int:
    return i


def fresh(*, autocommit: bool = False) -> Engine:
    """With `autocommit`, a spawn is one round trip, as it is for the peers; without, it has BEGIN and COMMIT."""
    witness.empty(TASKS, STEPS, BenchTask.Run.__table__.name)
    return create_engine(URL, isolation_level="AUTOCOMMIT" if autocommit else None)


def spawning(order: Order, *, keyed: bool, transactions: bool = False) -> Answer:
    engine = fresh(autocommit=not transactions)
    prefix = uuid4().hex

    def spawn(number: int, offset: int) -> None:
        for i in range(offset, offset + number):
            key = {"idempotency_key": f"{prefix}:{i}"} if keyed else {}
            with Session(engine) as session, session.begin():
                assert Durable(session).spawn(noop.call(number=i), **key).created

    answer = timed_sync(spawn, order.number, 20)
    witness.expect(f"SELECT count(*) FROM {TASKS} WHERE state = 'pending'", order.number + 20)
    engine.dispose()
    return answer


def duplicate(order: Order) -> Answer:
    engine = fresh(autocommit=True)

    def spawn() -> bool:
        with Session(engine) as session, session.begin():
            return Durable(session).spawn(noop.call(number=1), idempotency_key="held").created

    assert spawn()

    def again() -> None:
        assert not spawn()

    answer = repeated_sync(again, order.number)
    witness.expect(f"SELECT count(*) FROM {TASKS}", 1)
    engine.dispose()
    return answer


def bulk(order: Order, *, keyed: bool) -> Answer:
    engine = fresh()
    answer = timed_sync(lambda number, _: spawn_all(engine, number, keyed=keyed), order.number, 200)
    witness.expect(f"SELECT count(*) FROM {TASKS} WHERE state = 'pending'", order.number + 200)
    witness.expect(f"SELECT count(DISTINCT idempotency_key) FROM {TASKS}", (order.number + 200) * keyed)
    engine.dispose()
    return answer


def spawn_all(engine: Engine, number: int, *, keyed: bool = False) -> None:
    prefix = uuid4().hex
    with Session(engine) as session, session.begin():
        calls = [noop.call(number=i) for i in range(number)]
        if keyed:
            calls = [call.using(idempotency_key=f"{prefix}:{i}") for i, call in enumerate(calls)]
        Durable(session).spawn_many(calls)


async def drain(order: Order) -> Answer:
    engine = fresh()
    spawn_all(engine, order.number)
    witness.settle(TASKS)
    clock = Drain(witness, order.number, f"SELECT count(*) FROM {TASKS} WHERE state = 'completed'")
    handled.call = clock.called
    async with Worker(engine, [BenchTask], concurrency=order.concurrency or BEST_CONCURRENCY):
        answer = await asyncio.to_thread(clock.wait)
    witness.expect(f"SELECT sum(result::bigint)::bigint FROM {TASKS}", clock.total)
    engine.dispose()
    return answer


async def steps(order: Order) -> Answer:
    engine = fresh()
    async with Worker(engine, [BenchTask]):
        with Session(engine) as session, session.begin():
            Durable(session).spawn(stepping.call(number=order.number))
        await asyncio.to_thread(witness.wait, f"SELECT count(*) FROM {TASKS} WHERE state = 'completed'", 1)
    witness.expect(f"SELECT count(*) FROM {STEPS}", order.number)
    witness.expect(f"SELECT sum(value::bigint)::bigint FROM {STEPS}", sum(range(order.number)))
    seconds = witness.ask(f"SELECT result::float FROM {TASKS}")
    engine.dispose()
    return {"seconds": seconds, "number": order.number}


async def pick_up(order: Order) -> Answer:
    engine = fresh()
    arrival = Arrival()
    handled.call = arrival.reached
    autocommit = create_engine(URL, isolation_level="AUTOCOMMIT")

    def spawn() -> None:
        with Session(autocommit) as session, session.begin():
            Durable(session).spawn(noop.call(number=1))

    async with Worker(engine, [BenchTask]):
        answer = await asyncio.to_thread(arrival.pick_up, order, spawn)
        await asyncio.to_thread(
            witness.wait, f"SELECT count(*) FROM {TASKS} WHERE state = 'completed'", raced(order.number)
        )
    engine.dispose()
    autocommit.dispose()
    return answer


async def racing(order: Order) -> Answer:
    fresh().dispose()
    # asyncpg: sixteen at once are a matter of the event loop, and it needs less of that than psycopg.
    url = URL.set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=RACERS, isolation_level="AUTOCOMMIT")

    async def spawn(key: str) -> bool:
        async with AsyncSession(engine) as session, session.begin():
            return (await AsyncDurable(session).spawn(noop.call(number=1), idempotency_key=key)).created

    answer = await race(order.number, [spawn] * RACERS, uuid4().hex)
    witness.expect(f"SELECT count(*) FROM {TASKS}", raced(order.number))
    await engine.dispose()
    return answer


Base.metadata.create_all(create_engine(URL))
serve(
    workloads(spawning, duplicate, bulk, drain, pick_up, racing, steps),
    packages=["sqlalchemy", "psycopg", "asyncpg"],
)
