"""PgQueuer, on the driver that the second argument names: asyncpg, which its docs recommend, or psycopg."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import uvloop
from contests import RACERS, Arrival, race, raced
from pgqueuer import PgQueuer
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.adapters.drivers.psycopg import PsycopgDriver
from pgqueuer.domain.types import QueueExecutionMode
from pgqueuer.queries import Queries
from speak import Answer, Order, repeated, serve, timed, workloads
from witness import Drain, Witness

DSN, ON = sys.argv[1:]
QUEUE, LOG = "pgqueuer", "pgqueuer_log"
SUCCESSFUL = f"SELECT count(*) FROM {LOG} WHERE status = 'successful'"
# What it claims, and completes, at once; by default 10. What drained fastest on two cores, of 100 to 1000.
BEST_BATCH = 500
witness = Witness(DSN)


@asynccontextmanager
async def connected() -> AsyncIterator[Any]:
    """A driver of its own, on one connection, as its README has it."""
    if ON == "asyncpg":
        connection = await asyncpg.connect(DSN)
        yield AsyncpgDriver(connection)
    else:
        connection = await psycopg.AsyncConnection.connect(DSN, autocommit=True)
        yield PsycopgDriver(connection)
    await connection.close()


@asynccontextmanager
async def for_a_worker() -> AsyncIterator[Any]:
    """On asyncpg a pool of its default size: one batch is claimed while another is completed. It has none for
    psycopg."""
    if ON == "asyncpg":
        async with asyncpg.create_pool(DSN, min_size=3, max_size=5) as pool:
            yield AsyncpgPoolDriver(pool)
    else:
        async with connected() as driver:
            yield driver


def fresh() -> None:
    witness.empty(QUEUE, LOG, "pgqueuer_statistics")


async def spawning(order: Order, *, keyed: bool, transactions: bool = False) -> Answer:
    fresh()
    prefix = uuid4().hex
    async with connected() as driver:
        queries = Queries(driver)
        transaction = driver._connection.transaction

        async def spawn(number: int, offset: int) -> None:
            for i in range(offset, offset + number):
                if transactions:
                    async with transaction():
                        await queries.enqueue("noop", b"%d" % i, dedupe_key=f"{prefix}:{i}")
                else:
                    await queries.enqueue("noop", b"%d" % i, dedupe_key=f"{prefix}:{i}" if keyed else None)

        answer = await timed(spawn, order.number, 20)
    witness.expect(f"SELECT count(*) FROM {QUEUE} WHERE status = 'queued'", order.number + 20)
    return answer


async def duplicate(order: Order) -> Answer:
    """It says that there was a duplicate, and not whose."""
    fresh()
    async with connected() as driver:
        queries = Queries(driver)
        await queries.enqueue("noop", b"1", dedupe_key="held")

        async def again() -> None:
            assert await queries.enqueue("noop", b"1", dedupe_key="held", on_conflict="skip") == [None]

        answer = await repeated(again, order.number)
    witness.expect(f"SELECT count(*) FROM {QUEUE}", 1)
    return answer


async def bulk(order: Order, *, keyed: bool) -> Answer:
    fresh()
    async with connected() as driver:
        answer = await timed(lambda number, _: spawn_all(driver, number, keyed=keyed), order.number, 200)
    witness.expect(f"SELECT count(*) FROM {QUEUE} WHERE status = 'queued'", order.number + 200)
    return answer


async def spawn_all(driver: Any, number: int, *, keyed: bool = False) -> None:
    """Its batch API, all at once: one INSERT ... SELECT FROM unnest."""
    prefix = uuid4().hex
    payloads = [b"%d" % i for i in range(number)]
    keys: list[str | None] = [f"{prefix}:{i}" for i in range(number)] if keyed else [None] * number
    ids = await Queries(driver).enqueue(["noop"] * number, payloads, [0] * number, dedupe_key=keys)
    assert len(ids) == number


async def drain(order: Order) -> Answer:
    """Its concurrency is its batch size: it starts what it has claimed, and may claim the next batch meanwhile. The
    strict limit, max_concurrent_tasks, makes its claims dearer and isn't asked for."""
    fresh()
    async with connected() as driver:
        await spawn_all(driver, order.number)
    async with for_a_worker() as driver:
        witness.settle(QUEUE, LOG)
        clock = Drain(witness, order.number, SUCCESSFUL)
        pgq = PgQueuer(driver)

        @pgq.entrypoint("noop")
        async def noop(job: Any) -> None:
            clock.called(int(job.payload))

        # drain: it ends, and flushes its last completions, as soon as the queue is empty, instead of on its timer.
        working = asyncio.create_task(
            pgq.run(batch_size=order.concurrency or BEST_BATCH, mode=QueueExecutionMode.drain)
        )
        answer = await asyncio.to_thread(clock.wait)
        await working
    witness.expect(f"SELECT count(*) FROM {QUEUE}", 0)
    return answer


async def pick_up(order: Order) -> Answer:
    fresh()
    arrival = Arrival()
    async with for_a_worker() as driver, connected() as spawner:
        pgq = PgQueuer(driver)

        @pgq.entrypoint("noop")
        async def noop(job: Any) -> None:
            arrival.reached()

        working = asyncio.create_task(pgq.run())
        queries = Queries(spawner)
        answer = await arrival.pick_up_async(order, lambda: queries.enqueue("noop", b"1"))
        pgq.shutdown.set()
        await working
    witness.expect(SUCCESSFUL, raced(order.number))
    return answer


async def racing(order: Order) -> Answer:
    fresh()
    async with AsyncExitStack() as stack:
        queries = [Queries(await stack.enter_async_context(connected())) for _ in range(RACERS)]

        def racer(of: Queries) -> Callable[[str], Awaitable[Any]]:
            return lambda key: of.enqueue("noop", b"1", dedupe_key=key, on_conflict="skip")

        answer = await race(order.number, [racer(each) for each in queries], uuid4().hex)
    witness.expect(f"SELECT count(*) FROM {QUEUE}", raced(order.number))
    return answer


async def install() -> None:
    async with connected() as driver:
        await Queries(driver).install()


asyncio.run(install())
serve(
    workloads(spawning, duplicate, bulk, drain, pick_up, racing),
    packages=["pgqueuer", ON, "uvloop"],
    loop_factory=uvloop.new_event_loop,  # as its own command line does
)
