"""absurd-sdk, with the schema that absurdctl carries."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import absurdctl
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd
from contests import RACERS, Arrival, race, raced
from speak import Answer, Order, Stopwatch, repeated_sync, serve, timed_sync, workloads
from witness import Drain, Witness

DSN = sys.argv[1]
TASKS, RUNS, STEPS = "absurd.t_bench", "absurd.r_bench", "absurd.c_bench"
# One claim for so many tasks; by default it claims as many as run at once, and none before the last has ended.
BATCH = 100
# What drains fastest on two cores, of 1 to 100 and 100 to 1000: all statements go through its one connection.
BEST_CONCURRENCY, BEST_BATCH = 10, 1000
# Without notifications it polls: by default every 250 ms. More often costs the idle server more.
POLL = 0.01
witness = Witness(DSN)


def fresh() -> None:
    witness.empty(TASKS, RUNS, STEPS, "absurd.e_bench", "absurd.w_bench")


def client(connection: Any = DSN) -> Absurd:
    absurd = Absurd(
        connection, queue_name="bench"
    )  # its own connection is in autocommit: a round trip a spawn
    absurd.register_task("noop")(lambda params, ctx: params["number"])
    return absurd


def spawning(order: Order, *, keyed: bool, transactions: bool = False) -> Answer:
    fresh()
    connection = psycopg.connect(DSN, autocommit=not transactions)
    absurd = client(connection)
    prefix = uuid4().hex

    def spawn(number: int, offset: int) -> None:
        for i in range(offset, offset + number):
            key = f"{prefix}:{i}" if keyed else None
            absurd.spawn("noop", {"number": i}, idempotency_key=key)
            if transactions:
                connection.commit()

    answer = timed_sync(spawn, order.number, 20)
    witness.expect(f"SELECT count(*) FROM {TASKS} WHERE state = 'pending'", order.number + 20)
    connection.close()
    return answer


def duplicate(order: Order) -> Answer:
    fresh()
    absurd = client()
    held = absurd.spawn("noop", {"number": 1}, idempotency_key="held")["task_id"]

    def again() -> None:
        assert absurd.spawn("noop", {"number": 1}, idempotency_key="held")["task_id"] == held

    answer = repeated_sync(again, order.number)
    witness.expect(f"SELECT count(*) FROM {TASKS}", 1)
    absurd.close()
    return answer


def bulk(order: Order, *, keyed: bool) -> Answer:
    fresh()
    answer = timed_sync(lambda number, _: spawn_all(number, keyed=keyed), order.number, 200)
    witness.expect(f"SELECT count(*) FROM {TASKS} WHERE state = 'pending'", order.number + 200)
    return answer


def spawn_all(number: int, *, keyed: bool = False) -> None:
    """It has no bulk API: a loop in one transaction."""
    prefix = uuid4().hex
    with psycopg.connect(DSN) as connection, connection.transaction():
        absurd = client(connection)
        for i in range(number):
            absurd.spawn("noop", {"number": i}, idempotency_key=f"{prefix}:{i}" if keyed else None)


async def drain(order: Order) -> Answer:
    fresh()
    spawn_all(order.number)
    witness.settle(TASKS, RUNS)
    clock = Drain(witness, order.number, f"SELECT count(*) FROM {TASKS} WHERE state = 'completed'")
    absurd = AsyncAbsurd(DSN, queue_name="bench")

    @absurd.register_task("noop")
    async def noop(params: Any, ctx: Any) -> int:
        clock.called(params["number"])
        return params["number"]

    working = asyncio.create_task(
        absurd.start_worker(
            concurrency=order.concurrency or BEST_CONCURRENCY,
            batch_size=BATCH if order.concurrency else BEST_BATCH,
            poll_interval=POLL,
        )
    )
    answer = await asyncio.to_thread(clock.wait)
    absurd.stop_worker()
    await working
    await absurd.close()
    witness.expect(f"SELECT sum(completed_payload::bigint)::bigint FROM {TASKS}", clock.total)
    return answer


async def steps(order: Order) -> Answer:
    fresh()
    client().spawn("stepping", {}, queue="bench")
    absurd = AsyncAbsurd(DSN, queue_name="bench")

    @absurd.register_task("stepping")
    async def stepping(params: Any, ctx: Any) -> float:
        async def one() -> int:
            return i

        with Stopwatch() as watch:
            for i in range(order.number):
                await ctx.step(f"step {i}", one)
        return watch.seconds

    await absurd.work_batch()
    await absurd.close()
    witness.expect(f"SELECT count(*) FROM {STEPS}", order.number)
    witness.expect(f"SELECT sum(state::bigint)::bigint FROM {STEPS}", sum(range(order.number)))
    return {"seconds": witness.ask(f"SELECT completed_payload::float FROM {TASKS}"), "number": order.number}


async def pick_up(order: Order) -> Answer:
    fresh()
    arrival = Arrival()
    absurd = AsyncAbsurd(DSN, queue_name="bench")

    @absurd.register_task("noop")
    async def noop(params: Any, ctx: Any) -> None:
        arrival.reached()

    spawner = client()
    working = asyncio.create_task(absurd.start_worker(concurrency=10, poll_interval=POLL))
    answer = await asyncio.to_thread(arrival.pick_up, order, lambda: spawner.spawn("noop", {"number": 1}))
    await asyncio.to_thread(
        witness.wait, f"SELECT count(*) FROM {TASKS} WHERE state = 'completed'", raced(order.number)
    )
    absurd.stop_worker()
    await working
    await absurd.close()
    spawner.close()
    return answer


async def racing(order: Order) -> Answer:
    fresh()
    clients = [AsyncAbsurd(DSN, queue_name="bench") for _ in range(RACERS)]

    def racer(absurd: AsyncAbsurd) -> Callable[[str], Any]:
        return lambda key: absurd.spawn("noop", {"number": 1}, queue="bench", idempotency_key=key)

    answer = await race(order.number, [racer(absurd) for absurd in clients], uuid4().hex)
    for absurd in clients:
        await absurd.close()
    witness.expect(f"SELECT count(*) FROM {TASKS}", raced(order.number))
    return answer


with psycopg.connect(DSN, autocommit=True) as setup:
    setup.execute(absurdctl.BUNDLED_SCHEMA_SQL)
client().create_queue("bench")
serve(
    workloads(spawning, duplicate, bulk, drain, pick_up, racing, steps),
    packages=["absurd-sdk", "absurdctl", "psycopg"],
)
