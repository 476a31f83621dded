"""Queues, and a worker of theirs in a process of its own, which tells what it has used."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from subprocess import PIPE, Popen
from threading import Thread

import psutil
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from sa_durable import AsyncTaskContext, Durable, DurableTask, Worker
from tests.apps import application
from tests.children import read_line
from tests.databases import url_of
from tests.waiting import wait_until

Base, *QUEUES = application(
    FirstTask="first", SecondTask="second", ThirdTask="third", FourthTask="fourth", FifthTask="fifth"
)
FirstTask, SecondTask, ThirdTask, FourthTask, FifthTask = QUEUES


async def noop(ctx: AsyncTaskContext, number: int) -> int:
    return number


NOOPS = {model: model.handler()(noop) for model in QUEUES}


@FirstTask.handler()
async def hold(ctx: AsyncTaskContext, seconds: float) -> None:
    await asyncio.sleep(seconds)


@FirstTask.handler()
async def fan_out(ctx: AsyncTaskContext, children: int) -> int:
    spawned = await ctx.spawn_many([NOOPS[FirstTask].call(number=n) for n in range(children)])
    return sum(await ctx.join_all(spawned))


def spawn(engine: Engine, number: int, model: type[DurableTask] = FirstTask) -> None:
    with Session(engine) as session, session.begin():
        Durable(session).spawn_many([NOOPS[model].call(number=n) for n in range(number)])


def left(engine: Engine, model: type[DurableTask] = FirstTask) -> int:
    """How many tasks of a queue wait for a worker, or are with one."""
    waiting = f"SELECT count(*) FROM {model.__table__.name} WHERE state IN ('pending', 'running')"
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        return int(connection.scalar(text(waiting)))


def wait_until_done(engine: Engine, model: type[DurableTask] = FirstTask, timeout: float = 300) -> None:
    wait_until(lambda: not left(engine, model), timeout, "all tasks to be over")


@dataclass(frozen=True)
class Used:
    processor: float  # seconds, so far
    memory: int  # bytes, resident now


class Served:
    """A worker process; it works until it is closed."""

    def __init__(self, engine: Engine, *, queues: int = 1, concurrency: int = 10, lease: float = 60) -> None:
        arguments = [url_of(engine), str(queues), str(concurrency), str(lease)]
        command = [sys.executable, "-m", "tests.bench.serving", *arguments]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        self.used()  # it is there

    def used(self) -> Used:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Used(**json.loads(read_line(self._process)))

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@contextmanager
def served(engine: Engine, **options: float) -> Iterator[Served]:
    worker = Served(engine, **options)
    try:
        yield worker
    finally:
        worker.close()


def _serve(url: str, queues: int, concurrency: int, lease: float) -> None:
    worker = Worker(
        create_engine(url), QUEUES[:queues], concurrency=concurrency, lease=timedelta(seconds=lease)
    )
    thread = Thread(target=worker.run)
    thread.start()
    process = psutil.Process()
    for _ in sys.stdin:
        used = {"processor": time.process_time(), "memory": process.memory_info().rss}
        print(json.dumps(used), flush=True)
    worker.request_stop()
    thread.join()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
