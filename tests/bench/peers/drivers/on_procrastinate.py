"""Procrastinate, on its PsycopgConnector."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import psycopg
from contests import RACERS, Arrival, race, raced
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued
from psycopg_pool import AsyncConnectionPool
from speak import Answer, Order, repeated, serve, timed, workloads
from witness import Drain, Witness

DSN = sys.argv[1]
JOBS = "procrastinate_jobs"
SUCCEEDED = f"SELECT count(*) FROM {JOBS} WHERE status = 'succeeded'"
# What drains fastest on two cores, of 1 to 100: it claims and completes one at a time.
BEST_CONCURRENCY = 10
witness = Witness(DSN)
logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it logs two lines a job


@asynccontextmanager
async def opened(connections: int) -> AsyncIterator[App]:
    """An App on a pool of ours, as its docs allow: in autocommit, which saves it BEGIN and COMMIT around its single
    statements, and without the pool's check of each connection it lends, which costs a round trip each time."""
    pool = AsyncConnectionPool(
        DSN, min_size=connections, max_size=connections, configure=autocommit, open=False
    )
    app = App(connector=PsycopgConnector())
    async with pool, app.open_async(pool):
        await pool.wait()
        yield app


async def autocommit(connection: psycopg.AsyncConnection) -> None:
    await connection.set_autocommit(True)


def fresh() -> None:
    witness.empty(JOBS, "procrastinate_events", "procrastinate_workers")


async def spawning(order: Order, *, keyed: bool, transactions: bool = False) -> Answer:
    fresh()
    prefix = uuid4().hex
    async with opened(1) as app, await psycopg.AsyncConnection.connect(DSN) as ours:

        @app.task(name="noop")
        async def noop(number: int) -> None: ...

        async def spawn(number: int, offset: int) -> None:
            for i in range(offset, offset + number):
                key = {"queueing_lock": f"{prefix}:{i}"} if keyed else {}
                if transactions:
                    async with ours.transaction():
                        await noop.configure(**key, connection=ours).defer_async(number=i)
                else:
                    await noop.configure(**key).defer_async(number=i)

        answer = await timed(spawn, order.number, 20)
    witness.expect(f"SELECT count(*) FROM {JOBS} WHERE status = 'todo'", order.number + 20)
    return answer


async def duplicate(order: Order) -> Answer:
    """It raises, and doesn't say whose the key is."""
    fresh()
    async with opened(1) as app:

        @app.task(name="noop", queueing_lock="held")
        async def noop(number: int) -> None: ...

        async def refused() -> bool:
            try:
                await noop.defer_async(number=1)
            except AlreadyEnqueued:
                return True
            return False

        assert not await refused()

        async def again() -> None:
            assert await refused()

        answer = await repeated(again, order.number)
    witness.expect(f"SELECT count(*) FROM {JOBS}", 1)
    return answer


async def bulk(order: Order, *, keyed: bool) -> Answer:
    fresh()
    async with opened(1) as app:
        answer = await timed(lambda number, _: spawn_all(app, number, keyed=keyed), order.number, 200)
    witness.expect(f"SELECT count(*) FROM {JOBS} WHERE status = 'todo'", order.number + 200)
    return answer


async def spawn_all(app: App, number: int, *, keyed: bool = False) -> None:
    """Its batch API, all at once. A task's jobs of one batch share their queueing lock, which refuses them: with keys
    the batch goes to the job manager, which batch_defer_async itself calls."""
    task = app.tasks.get("noop") or app.task(name="noop")(nothing)
    if not keyed:
        await task.batch_defer_async(*({"number": i} for i in range(number)))
        return
    prefix = uuid4().hex
    jobs = [task.configure(queueing_lock=f"{prefix}:{i}").make_new_job(number=i) for i in range(number)]
    await app.job_manager.batch_defer_jobs_async(jobs)


async def nothing(number: int) -> None: ...


async def drain(order: Order) -> Answer:
    fresh()
    concurrency = order.concurrency or BEST_CONCURRENCY
    # A job holds a connection while it is claimed and completed only: more than ten were no faster.
    async with opened(min(concurrency + 1, 10)) as app:
        clock = Drain(witness, order.number, SUCCEEDED)

        @app.task(name="noop")
        async def noop(number: int) -> None:
            clock.called(number)

        await spawn_all(app, order.number)
        witness.settle(JOBS)
        waiting = asyncio.create_task(asyncio.to_thread(clock.wait))
        await app.run_worker_async(concurrency=concurrency, wait=False, install_signal_handlers=False)
        return await waiting


async def pick_up(order: Order) -> Answer:
    fresh()
    arrival = Arrival()
    async with opened(5) as app:

        @app.task(name="noop")
        async def noop() -> None:
            arrival.reached()

        working = asyncio.create_task(app.run_worker_async(concurrency=10, install_signal_handlers=False))
        answer = await arrival.pick_up_async(order, noop.defer_async)
        await asyncio.to_thread(witness.wait, SUCCEEDED, raced(order.number))
        working.cancel()
        await asyncio.wait([working])
    return answer


async def racing(order: Order) -> Answer:
    fresh()
    async with opened(RACERS) as app:
        task = app.task(name="noop")(nothing)

        async def spawn(key: str) -> Any:
            try:
                return await task.configure(queueing_lock=key).defer_async(number=1)
            except AlreadyEnqueued:
                return None

        answer = await race(order.number, [spawn] * RACERS, uuid4().hex)
    witness.expect(f"SELECT count(*) FROM {JOBS}", raced(order.number))
    return answer


async def install() -> None:
    async with opened(1) as app:
        await app.schema_manager.apply_schema_async()


asyncio.run(install())
serve(
    workloads(spawning, duplicate, bulk, drain, pick_up, racing),
    packages=["procrastinate", "psycopg", "psycopg-pool"],
)
