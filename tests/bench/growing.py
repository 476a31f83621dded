"""Many tasks through one queue and one worker, with autovacuum on: what grows with them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

import psutil
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.bench.figures import Figure, at_most, figure, ratio_at_most
from tests.bench.serving import NOOPS, Base, FirstTask, Served, left, served, spawn, wait_until_done
from tests.bench.workload import Bench, Workload
from tests.databases import url_of

SAMPLES, BACKLOG = 20, 5000
MEGABYTE = 1e6
BY_NUMBERS = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000"
_TABLE = FirstTask.__table__.name
_SIZES = f"""
    SELECT sum(pg_relation_size(indexrelid)) FILTER (WHERE indexrelid::regclass::text ~ '_(ready|running|due)$'),
        sum(pg_relation_size(indexrelid)), pg_table_size('{_TABLE}')
    FROM pg_index WHERE indrelid = '{_TABLE}'::regclass
"""


@dataclass(frozen=True)
class Sample:
    tasks: int  # that have gone through
    memory: int  # of the worker, resident bytes
    working_indexes: float  # bytes: those of tasks that are to be claimed, run or woken
    indexes: float
    table: float


def soak(bench: Bench) -> list[Sample]:
    """`bench.tasks` tasks, never more than some thousands at a time, on a table that is vacuumed by numbers, as operations say of
    a busy queue. Autovacuum looks so often that half a dozen rounds pass: what one of them has emptied is used again after the
    next, so before the third nothing has settled."""
    samples: list[Sample] = []
    engine = bench.own_database(Base.metadata)
    bench.enter(_naptime(bench.engine, max(1, bench.tasks // 100_000)))
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {_TABLE} SET ({BY_NUMBERS})"))
    worker = bench.enter(served(engine))
    each = max(1000, bench.tasks // SAMPLES // 1000 * 1000)
    began = time.monotonic()
    for number in range(0, bench.tasks, each):
        for _ in range(each // 1000):
            while left(engine) > BACKLOG:
                time.sleep(0.05)
            spawn(engine, 1000)
        samples.append(_sample(engine, worker, number + each))
    wait_until_done(engine)
    samples.append(_sample(engine, worker, samples[-1].tasks))
    bench.say(f"      {samples[-1].tasks / (time.monotonic() - began):,.0f} tasks/s")
    return samples


def _sample(engine: Engine, worker: Served, tasks: int) -> Sample:
    with engine.connect() as connection:
        working, indexes, table = connection.execute(text(_SIZES)).one()
    return Sample(tasks, worker.used().memory, float(working), float(indexes), float(table))


@contextmanager
def _naptime(engine: Engine, seconds: int) -> Iterator[None]:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"ALTER SYSTEM SET autovacuum_naptime = {seconds}"))
        connection.execute(text("SELECT pg_reload_conf()"))
        yield
        connection.execute(text("ALTER SYSTEM RESET autovacuum_naptime"))
        connection.execute(text("SELECT pg_reload_conf()"))


def index_sizes(bench: Bench) -> Iterator[Figure]:
    """The indexes that claims, heartbeats and wake-ups use hold what is going on, however much went through. The others
    hold what is kept until the queue's retention is over: so many bytes a task."""
    samples = bench.once(soak)
    half = [sample.working_indexes / MEGABYTE for sample in samples[len(samples) // 4 : len(samples) // 2]]
    end = [sample.working_indexes / MEGABYTE for sample in samples[-len(half) - 1 : -1]]
    yield figure("MB", end, half, name="of open tasks, last quarter")
    last = samples[-1]
    yield figure("bytes", [last.indexes / last.tasks], name="all indexes, a task")
    yield figure("bytes", [last.table / last.tasks], name="table, a task")


def worker_memory(bench: Bench) -> Iterator[Figure]:
    samples = [sample.memory / MEGABYTE for sample in bench.once(soak)]
    quarter = len(samples) // 4
    yield figure("MB", samples[-quarter:], samples[quarter : 2 * quarter], name="last quarter")


def batch_memory(bench: Bench) -> Iterator[Figure]:
    """The most that a process had resident which gave spawn_many a generator and kept what it returned."""
    engine = bench.own_database(Base.metadata)
    number = bench.times(1_000_000)
    command = [sys.executable, "-m", "tests.bench.growing", url_of(engine), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, seconds = map(float, done.stdout.split())
    yield figure("MB", [after], name="the most")
    yield figure("MB", [before], name="before")
    yield figure("s", [seconds], name="time")


def _spawn_from_a_generator(url: str, number: int) -> None:
    engine = create_engine(url)
    spawn(engine, 10)
    before, began = psutil.Process().memory_info().rss, time.perf_counter()
    with Session(engine) as session, session.begin():
        spawned = Durable(session).spawn_many(NOOPS[FirstTask].call(number=n) for n in range(number))
        assert len(spawned) == number
    most = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    print(before / MEGABYTE, most / MEGABYTE, time.perf_counter() - began)


STABLE = {"of open tasks, last quarter": ratio_at_most(1.25)}
WORKLOADS = [
    Workload(17, "index sizes while many tasks go through", "second quarter", index_sizes, STABLE),
    Workload(18, "a worker's memory", "second quarter", worker_memory, {"last quarter": ratio_at_most(1.1)}),
    Workload(18, "spawn_many of a million from a generator", "", batch_memory, {"the most": at_most(200)}),
]

if __name__ == "__main__":
    _spawn_from_a_generator(sys.argv[1], int(sys.argv[2]))
