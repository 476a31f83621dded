"""DBOS Transact, on its system database."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from contests import RACERS, Arrival, race, raced
from dbos import DBOS, DBOSClient, DBOSConfig
from speak import Answer, Hook, Order, Stopwatch, repeated_sync, serve, timed_sync, workloads
from witness import Drain, Witness

DSN = sys.argv[1]
QUEUE = "bench"
STATUS, STEPS, OUTPUTS = "dbos.workflow_status", "dbos.operation_outputs", "dbos.workflow_output"
SUCCESSFUL = f"SELECT count(*) FROM {STATUS} WHERE status = 'SUCCESS'"
# It dequeues what its concurrency leaves room for, once per interval: by default a second.
POLL = 0.01
DRAINING_POLL = 0.001
# What drains fastest on two cores: no limit, and it dequeues all there is. Limits of 10, 50 and 100 were slower.
BEST_CONCURRENCY: int | None = None
CONFIG: DBOSConfig = {
    "name": "bench",
    "system_database_url": DSN,
    "sys_db_pool_size": 20,  # its default; the pool's check of each connection it lends costs a round trip:
    "db_engine_kwargs": {"pool_pre_ping": False},
    "log_level": "ERROR",
    "run_migrations": True,
}
witness = Witness(DSN)
handled = Hook()


@DBOS.workflow(name="noop")
async def noop(number: int) -> int:
    handled.call(number)
    return number


@DBOS.step(name="one")
async def one(i: int) -> int:
    return i


@DBOS.workflow(name="stepping")
async def stepping(number: int) -> None:
    with Stopwatch() as watch:
        for i in range(number):
            await one(i)
    handled.call(watch.seconds)


def fresh() -> None:
    witness.empty(STATUS, STEPS, OUTPUTS, "dbos.workflow_input")


@contextmanager
def client(connections: int = 1) -> Iterator[DBOSClient]:
    """On an engine of ours, as its docs allow: without the check of each connection."""
    url = sa.make_url(DSN).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, pool_size=connections)
    made = DBOSClient(system_database_engine=engine)
    yield made
    made.destroy()
    engine.dispose()


def options(key: str | None, workflow: str = "noop") -> Any:
    """Its idempotency key is the workflow's id."""
    return {"workflow_name": workflow, "queue_name": QUEUE} | ({"workflow_id": key} if key else {})


def spawning(order: Order, *, keyed: bool, transactions: bool = False) -> Answer:
    fresh()
    prefix = uuid4().hex
    with client() as dbos:
        engine = dbos._sys_db.engine

        def spawn(number: int, offset: int) -> None:
            for i in range(offset, offset + number):
                what = options(f"{prefix}:{i}" if keyed else None)
                if transactions:
                    with engine.begin() as connection:
                        dbos.enqueue_in_transaction(connection, what, i)
                else:
                    dbos.enqueue(what, i)

        answer = timed_sync(spawn, order.number, 20)
    witness.expect(f"SELECT count(*) FROM {STATUS} WHERE status = 'ENQUEUED'", order.number + 20)
    return answer


def duplicate(order: Order) -> Answer:
    fresh()
    with client() as dbos:
        answer = repeated_sync(lambda: dbos.enqueue(options("held"), 1), order.number)
    witness.expect(f"SELECT count(*) FROM {STATUS}", 1)
    return answer


def bulk(order: Order, *, keyed: bool) -> Answer:
    fresh()
    with client() as dbos:
        answer = timed_sync(lambda number, _: spawn_all(dbos, number, keyed=keyed), order.number, 50)
    witness.expect(f"SELECT count(*) FROM {STATUS} WHERE status = 'ENQUEUED'", order.number + 50)
    return answer


def spawn_all(dbos: DBOSClient, number: int, *, keyed: bool = False) -> None:
    """It has no bulk API: a loop in one transaction."""
    prefix = uuid4().hex
    with dbos._sys_db.engine.begin() as connection:
        for i in range(number):
            dbos.enqueue_in_transaction(connection, options(f"{prefix}:{i}" if keyed else None), i)


@contextmanager
def working(concurrency: int | None, poll: float) -> Iterator[DBOSClient]:
    with client() as dbos:
        dbos.register_queue(QUEUE, worker_concurrency=concurrency, polling_interval_sec=poll)
        DBOS(config=CONFIG)
        DBOS.listen_queues([QUEUE])
        DBOS.launch()
        try:
            yield dbos
        finally:
            DBOS.destroy()


def drain(order: Order) -> Answer:
    fresh()
    with client() as filling:
        spawn_all(filling, order.number)
    witness.settle(STATUS, STEPS, OUTPUTS)
    clock = Drain(witness, order.number, SUCCESSFUL)
    handled.call = clock.called
    with working(order.concurrency or BEST_CONCURRENCY, DRAINING_POLL):
        answer = clock.wait()
    witness.expect(f"SELECT count(output) FROM {OUTPUTS}", order.number)
    return answer


def steps(order: Order) -> Answer:
    fresh()
    spent: list[float] = []
    handled.call = spent.append
    with working(10, POLL) as dbos:
        dbos.enqueue(options(None, "stepping"), order.number)
        witness.wait(SUCCESSFUL, 1)
    witness.expect(f"SELECT count(output) FROM {STEPS}", order.number)
    return {"seconds": spent[0], "number": order.number}


def pick_up(order: Order) -> Answer:
    fresh()
    arrival = Arrival()
    handled.call = arrival.reached
    with working(10, POLL) as dbos:
        answer = arrival.pick_up(order, lambda: dbos.enqueue(options(None), 1))
        witness.wait(SUCCESSFUL, raced(order.number))
    return answer


async def racing(order: Order) -> Answer:
    fresh()
    threads = ThreadPoolExecutor(RACERS)  # its async client is its sync one, in threads
    with client(RACERS) as dbos:

        async def spawn(key: str) -> Any:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(threads, dbos.enqueue, options(key), 1)

        answer = await race(order.number, [spawn] * RACERS, uuid4().hex)
    threads.shutdown()
    witness.expect(f"SELECT count(*) FROM {STATUS}", raced(order.number))
    return answer


DBOS(config=CONFIG)
DBOS.launch()
DBOS.destroy()
serve(
    workloads(spawning, duplicate, bulk, drain, pick_up, racing, steps),
    packages=["dbos", "sqlalchemy", "psycopg"],
)
