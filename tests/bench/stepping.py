"""Steps and transactions of one task, beside bare inserts into the same tables, commit by commit."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from subprocess import PIPE, Popen
from threading import Thread
from time import perf_counter
from uuid import UUID

import psycopg
from sqlalchemy import Engine, Text, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column

from sa_durable import AsyncTaskContext, Durable, Handler, TaskContext, Worker, wait_for
from tests.apps import application
from tests.bench.draining import dsn
from tests.bench.figures import Figure, figure, ratio_at_least
from tests.bench.workload import Bench, Workload
from tests.databases import url_of

STEPS = 100  # of a task


Base, StepTask = application(StepTask="step")


class Receipt(Base):
    """The application's rows."""

    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(Text())


_NEW = insert(Receipt.__table__)


def nothing(number: int) -> int:
    return number


def write(session: Session, number: int) -> int:
    session.execute(_NEW, {"note": str(number)})
    return number


async def write_async(session: AsyncSession, number: int) -> int:
    await session.execute(_NEW, {"note": str(number)})
    return number


def sync_handler(name: str, act: Callable[[TaskContext, str, int], object]) -> Handler:
    @StepTask.handler(name)
    def handler(ctx: TaskContext, number: int) -> float:
        """Returns how many seconds so many steps took."""
        began = perf_counter()
        for i in range(number):
            act(ctx, f"step {i}", i)
        return perf_counter() - began

    return handler


def async_handler(name: str, act: Callable[[AsyncTaskContext, str, int], Awaitable[object]]) -> Handler:
    @StepTask.handler(name)
    async def handler(ctx: AsyncTaskContext, number: int) -> float:
        began = perf_counter()
        for i in range(number):
            await act(ctx, f"step {i}", i)
        return perf_counter() - began

    return handler


steps = async_handler("steps", lambda ctx, name, i: ctx.step(name, nothing, i))
HANDLERS = {
    handler.name: handler
    for handler in (
        steps,
        sync_handler("steps_sync", lambda ctx, name, i: ctx.step(name, nothing, i)),
        sync_handler("transactions_sync", lambda ctx, name, i: ctx.transaction(name, write, i)),
        async_handler("transactions_async", lambda ctx, name, i: ctx.transaction(name, write_async, i)),
        async_handler("transactions_mixed", lambda ctx, name, i: ctx.transaction(name, write, i)),
    )
}
CHECKPOINTS = StepTask.Checkpoint.__table__
_KEEP = insert(CHECKPOINTS)
_CHECKPOINT = f"""
    INSERT INTO {CHECKPOINTS.name} (task_id, name, value, attempt, created_at)
    VALUES (%s, %s, %s::jsonb, 1, statement_timestamp())
"""
_RECEIPT = "INSERT INTO receipts (note) VALUES (%s)"


class Bare:
    """Limits: what a task's steps leave behind, written without any task that runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._psycopg = psycopg.connect(dsn(engine), autocommit=True, prepare_threshold=0)
        self._loop, self._async_engine = asyncio.new_event_loop(), create_async_engine(engine.url)

    def inserts(self, task_id: UUID) -> None:
        for i in range(STEPS):
            self._psycopg.execute(_CHECKPOINT, (task_id, f"step {i}", str(i)))

    def transactions(self, task_id: UUID) -> None:
        for i in range(STEPS):
            with self._psycopg.transaction():
                self._psycopg.execute(_RECEIPT, (str(i),))
                self._psycopg.execute(_CHECKPOINT, (task_id, f"step {i}", str(i)))

    def core_inserts(self, task_id: UUID) -> None:
        for i in range(STEPS):
            with self._engine.begin() as connection:
                connection.execute(_KEEP, self._row(task_id, i))

    def core_transactions(self, task_id: UUID) -> None:
        for i in range(STEPS):
            with self._engine.begin() as connection:
                connection.execute(_NEW, {"note": str(i)})
                connection.execute(_KEEP, self._row(task_id, i))

    def session_transactions(self, task_id: UUID) -> None:
        for i in range(STEPS):
            with Session(self._engine) as session, session.begin():
                session.execute(_NEW, {"note": str(i)})
                session.execute(_KEEP, self._row(task_id, i))

    def async_core_transactions(self, task_id: UUID) -> None:
        self._loop.run_until_complete(self._async_core_transactions(task_id))

    async def _async_core_transactions(self, task_id: UUID) -> None:
        for i in range(STEPS):
            async with self._async_engine.begin() as connection:
                await connection.execute(_NEW, {"note": str(i)})
                await connection.execute(_KEEP, self._row(task_id, i))

    def async_session_transactions(self, task_id: UUID) -> None:
        self._loop.run_until_complete(self._async_session_transactions(task_id))

    async def _async_session_transactions(self, task_id: UUID) -> None:
        for i in range(STEPS):
            async with AsyncSession(self._async_engine) as session, session.begin():
                await session.execute(_NEW, {"note": str(i)})
                await session.execute(_KEEP, self._row(task_id, i))

    def close(self) -> None:
        self._loop.run_until_complete(self._async_engine.dispose())
        self._loop.close()
        self._psycopg.close()

    def _row(self, task_id: UUID, i: int) -> dict[str, object]:
        return {"task_id": task_id, "name": f"step {i}", "value": i, "attempt": 1}

    def seconds(self, write: Callable[[UUID], None]) -> float:
        with Session(self._engine) as session, session.begin():
            task_id = Durable(session).spawn(StepTask, "bare", {}).task_id
        began = perf_counter()
        write(task_id)
        return perf_counter() - began


class Stepper:
    """A worker process, and its tasks, which say how long they took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        command = [sys.executable, "-m", "tests.bench.stepping", url_of(engine)]
        self._process = Popen(command, stdin=PIPE, text=True)

    def seconds(self, handler: str) -> float:
        with Session(self._engine) as session, session.begin():
            spawned = Durable(session).spawn(HANDLERS[handler].call(STEPS))
        return float(wait_for(self._engine, spawned, timeout=timedelta(minutes=1)).value)

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@contextmanager
def stepper(engine: Engine) -> Iterator[Stepper]:
    process = Stepper(engine)
    try:
        yield process
    finally:
        process.close()


TASKS = 10  # in a round


def _steps(number: int, name: str, ours: tuple[str, ...], limit: str, reported: tuple[str, ...]) -> Workload:
    """Handlers beside one of LIMITS, which they are held to, and others, to know."""

    def measure(bench: Bench) -> Iterator[Figure]:
        engine = bench.own_database(Base.metadata)
        bare, worker = bench.enter(closing(Bare(engine))), bench.enter(stepper(engine))
        sides = {of: partial(bare.seconds, getattr(bare, of)) for of in (limit, *reported)}
        sides |= {handler: partial(worker.seconds, handler) for handler in ours}
        found = _in_turn(sides, bench.rounds, bench.times(TASKS))
        for handler in ours:
            yield figure("/s", found[handler], found[limit], name=OURS[handler])
            for of in reported:
                yield figure("/s", found[handler], found[of], name=f"{OURS[handler]}; beside {LIMITS[of]}")

    goals = {OURS[handler]: ratio_at_least(0.70) for handler in ours}
    return Workload(number, name, LIMITS[limit], measure, goals)


def _in_turn(sides: Mapping[str, Callable[[], float]], rounds: int, tasks: int) -> dict[str, list[float]]:
    """Steps a second of each side in each round."""
    found: dict[str, list[float]] = {title: [] for title in sides}
    for round_ in range(rounds + 1):  # the first is to warm up
        spent = dict.fromkeys(sides, 0.0)
        for i in range(tasks if round_ else 1):
            for title in sides if i % 2 else reversed(sides):
                spent[title] += sides[title]()
        if round_:
            for title, seconds in spent.items():
                found[title].append(tasks * STEPS / seconds)
    return found


LIMITS = {
    "inserts": "psycopg",
    "core_inserts": "bare Core",
    "transactions": "psycopg",
    "core_transactions": "bare Core on a Connection",
    "session_transactions": "bare Core in a Session, two inserts",
    "async_core_transactions": "bare Core on an AsyncConnection",
    "async_session_transactions": "bare Core in an AsyncSession, two inserts",
}
OURS = {
    "steps": "async handler",
    "steps_sync": "sync handler",
    "transactions_async": "async function",
    "transactions_mixed": "sync function of an async handler",
    "transactions_sync": "sync handler",
}
WORKLOADS = [
    _steps(11, "steps of a task, an insert a commit", ("steps", "steps_sync"), "inserts", ("core_inserts",)),
    _steps(
        12,
        "ctx.transaction with a row",
        ("transactions_sync", "transactions_mixed"),
        "session_transactions",
        ("core_transactions", "transactions"),
    ),
    _steps(
        12,
        "ctx.transaction with a row, async",
        ("transactions_async",),
        "async_session_transactions",
        ("async_core_transactions", "transactions"),
    ),
]


if __name__ == "__main__":
    serving = Worker(create_engine(sys.argv[1]), [StepTask])
    thread = Thread(target=serving.run)
    thread.start()
    sys.stdin.read()
    serving.request_stop()
    thread.join()
