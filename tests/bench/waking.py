"""How soon a task goes on whose event was emitted, and how long a thousand children and their join take."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import AsyncTaskContext, Durable, Worker
from tests.bench.figures import Figure, at_most, figure, p95
from tests.bench.serving import Base, FirstTask, SecondTask, fan_out, served
from tests.bench.workload import Bench, Workload
from tests.waiting import wait_until

CHILDREN = 1000
_resumed = threading.Event()
_at = [0.0]


@SecondTask.handler()
async def await_order(ctx: AsyncTaskContext, order_id: int) -> None:
    await ctx.await_event(f"paid:{order_id}")
    _at[0] = time.perf_counter()
    _resumed.set()


def resume(bench: Bench) -> Iterator[Figure]:
    """Milliseconds from before the COMMIT of an emit until the handler that waits for it goes on, in an idle worker."""
    engine = bench.own_database(Base.metadata)
    emit = bench.enter(_waiting(engine))
    rounds = [[1000 * emit() for _ in range(bench.times(30, least=5))] for _ in range(bench.rounds)]
    yield figure("ms", [statistics.median(times) for times in rounds], name="p50")
    yield figure("ms", [p95(times) for times in rounds], name="p95")


@contextmanager
def _waiting(engine: Engine) -> Iterator[Callable[[], float]]:
    worker = Worker(engine, [SecondTask])
    thread = threading.Thread(target=worker.run)
    thread.start()
    asleep = text(f"SELECT count(*) FROM {SecondTask.__table__.name} WHERE state = 'sleeping'")
    number = iter(range(1_000_000))

    def emit() -> float:
        order_id = next(number)
        _resumed.clear()
        with Session(engine) as session, session.begin():
            Durable(session).spawn(await_order.call(order_id=order_id))
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            wait_until(lambda: connection.scalar(asleep))
        time.sleep(0.1)  # idle again
        with Session(engine) as session, session.begin():
            Durable(session).emit_event(SecondTask, f"paid:{order_id}")
            began = time.perf_counter()
        assert _resumed.wait(10)
        return _at[0] - began

    try:
        emit()
        yield emit
    finally:
        worker.request_stop()
        thread.join()


def join(bench: Bench) -> Iterator[Figure]:
    """Seconds, on the server's clock, from the spawn of a task that spawns children and joins them all until its end."""
    engine = bench.own_database(Base.metadata)
    bench.enter(served(engine, concurrency=100))
    spent = []
    for _ in range(bench.rounds + 1):
        with Session(engine) as session, session.begin():
            parent = Durable(session).spawn(fan_out.call(children=bench.times(CHILDREN)))
        took = text(f"SELECT finished_at - created_at FROM {FirstTask.__table__.name} WHERE id = :id")
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            done = wait_until(lambda: connection.scalar(took, {"id": parent.task_id}), 120)  # noqa: B023 - called at once
        spent.append(done.total_seconds())
    yield figure("s", spent[1:])


WORKLOADS = [
    Workload(15, "event emit to resume", "", resume, {"p50": at_most(20), "p95": at_most(20)}),
    Workload(15, f"fan-out of {CHILDREN} children and join", "", join, {"": at_most(5)}),
]
