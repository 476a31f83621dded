"""Draining a queue: worker processes, beside a bare psycopg loop that claims and completes 100 tasks at a time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from subprocess import PIPE, Popen
from threading import Thread

import psycopg
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import AsyncTaskContext, Durable, DurableTask, TaskContext, Worker
from sa_durable.handlers import call_by_name
from tests.bench.alternation import Prepared, rates
from tests.bench.figures import Figure, figure, ratio_at_least
from tests.bench.models import fill
from tests.bench.workload import Bench, Workload
from tests.children import read_line
from tests.databases import url_of
from tests.waiting import wait_until

TASKS = 20_000
BATCH = 100  # of the bare loop


class Base(DeclarativeBase):
    pass


class DrainTask(DurableTask, Base):
    __queue__ = "drain"


_calls = count()  # of handlers in this process


async def noop(ctx: AsyncTaskContext, number: int) -> int:
    next(_calls)
    return number


def plain_noop(ctx: TaskContext, number: int) -> int:
    next(_calls)
    return number


TABLE = DrainTask.__table__.name


def spawn(session: Session, name: str, number: int) -> None:
    """Tasks that only those drain who go by that name."""
    calls = (call_by_name(DrainTask, name, {"number": i}, None) for i in range(number))
    Durable(session).spawn_many(calls)


def clear(engine: Engine, name: str) -> None:
    """No task of a name, and no vacuum is due."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"DELETE FROM {TABLE} WHERE name = :name"), {"name": name})
        connection.execute(text(f"VACUUM {TABLE}"))


_CLAIM = f"""
    WITH ready AS (
        SELECT id FROM {TABLE} WHERE state = 'pending' AND name = 'bare'
        ORDER BY priority, available_at, id LIMIT %s FOR UPDATE SKIP LOCKED
    )
    UPDATE {TABLE} AS task SET state = 'running', token = token + 1, claimed_by = %s,
        started_at = statement_timestamp(), first_started_at = coalesce(first_started_at, statement_timestamp()),
        lease_expires_at = statement_timestamp() + interval '60 s'
    FROM ready WHERE task.id = ready.id
    RETURNING task.id, task.run_id, task.params, task.token, task.attempt
"""
_COMPLETE = f"""
    UPDATE {TABLE} AS task SET state = 'completed', result = ended.result, finished_at = statement_timestamp(),
        lease_expires_at = NULL
    FROM unnest(%s::uuid[], %s::bigint[], %s::jsonb[]) AS ended (id, token, result)
    WHERE task.id = ended.id AND task.token = ended.token AND task.state = 'running'
"""


class Bare:
    """Limit: one connection that claims 100 tasks, makes their results and completes them, statement by statement,
    prepared, in autocommit."""

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine, self._number = engine, number
        self._connection = psycopg.connect(dsn(engine), autocommit=True, prepare_threshold=0)

    def prepare(self) -> None:
        clear(self._engine, "bare")
        with Session(self._engine) as session, session.begin():
            spawn(session, "bare", self._number)
        self._connection.execute(f"ANALYZE {TABLE}")  # or else its plan would be one for an empty table

    def drain(self) -> None:
        done = 0
        while done < self._number:
            rows = self._connection.execute(_CLAIM, (BATCH, "bare")).fetchall()
            ids, tokens = [row[0] for row in rows], [row[3] for row in rows]
            results = [json.dumps(row[2]["number"]) for row in rows]
            assert self._connection.execute(_COMPLETE, (ids, tokens, results)).rowcount == len(rows) > 0
            done += len(rows)


def dsn(engine: Engine) -> str:
    url = engine.url
    return f"host={url.query['host']} dbname={url.database} user={url.username}"


@dataclass(frozen=True)
class Workers:
    """Worker processes of a kind, and the name of the tasks that they know."""

    name: str = "async"
    concurrency: int = 10
    processes: int = 1


class Drainers:
    """Worker processes, with everything on that is on in production: results, leases, tokens, heartbeats,
    notifications. Idle until the tasks are there."""

    def __init__(self, engine: Engine, workers: Workers, number: int) -> None:
        self._engine, self._name, self._number = engine, workers.name, number
        arguments = [url_of(engine), workers.name, str(workers.concurrency)]
        command = [sys.executable, "-m", "tests.bench.draining", *arguments]
        self._workers = [Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(workers.processes)]
        self._before = self._handled()

    def prepare(self) -> None:
        self.audit()
        clear(self._engine, self._name)
        self._before = self._handled()
        self._session = Session(self._engine)
        spawn(self._session, self._name, self._number)

    def drain(self) -> None:
        """From before the COMMIT that spawns all tasks until all are completed."""
        self._session.commit()
        self._session.close()
        while self._handled() - self._before < self._number:
            time.sleep(0.01)  # the table is asked only once all handlers have run
        with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            wait_until(lambda: not connection.scalar(_LEFT, {"name": self._name}), what="all to be stored")

    def audit(self) -> None:
        """Each task was claimed once, and its handler has run once."""
        with self._engine.connect() as connection:
            tasks, other = connection.execute(_AUDIT, {"name": self._name}).one()
        handled = self._handled() - self._before
        assert (other, tasks) == (0, handled), (other, tasks, handled)

    def cpu(self) -> float:
        """Seconds of processor time that the workers have used."""
        return sum(float(self._ask(worker)[1]) for worker in self._workers)

    def _handled(self) -> int:
        return sum(int(self._ask(worker)[0]) for worker in self._workers)

    def _ask(self, worker: Popen[str]) -> list[str]:
        worker.stdin.write("\n")
        worker.stdin.flush()
        return read_line(worker).split()

    def close(self) -> None:
        for worker in self._workers:
            worker.stdin.close()
            assert worker.wait(60) == 0


_LEFT = text(f"""
    SELECT EXISTS (SELECT FROM {TABLE} WHERE state = 'pending' AND name = :name)
        OR EXISTS (SELECT FROM {TABLE} WHERE state = 'running' AND name = :name)
""")  # each by its index: the table may be big
_AUDIT = text(f"""
    SELECT count(*), count(*) FILTER (WHERE (state, token, attempt) <> ('completed', 1, 1) OR result <> params -> 'number')
    FROM {TABLE} WHERE name = :name
""")


@contextmanager
def drainers(engine: Engine, workers: Workers, number: int) -> Iterator[Drainers]:
    processes = Drainers(engine, workers, number)
    try:
        yield processes
        processes.audit()
    finally:
        processes.close()


def _drain(
    number: int, name: str, goal: float, workers: Workers, *, beside: Workers | None = None
) -> Workload:
    """Workers beside the bare loop, or beside other workers: on the same table, in turn."""

    def measure(bench: Bench) -> Iterator[Figure]:
        engine, tasks = bench.own_database(Base.metadata), bench.times(TASKS)
        if beside is None:
            limit: Bare | Drainers = Bare(engine, tasks)
        else:
            limit = bench.enter(drainers(engine, beside, tasks))
        ours = bench.enter(drainers(engine, workers, tasks))
        sides = [Prepared(side.prepare, side.drain) for side in (limit, ours)]
        of_limit, of_ours = rates(sides, rounds=bench.rounds, block=tasks)
        yield figure("/s", of_ours, of_limit)

    limit = "one process" if beside else "psycopg, claim 100 and complete 100"
    return Workload(number, name, limit, measure, {"": ratio_at_least(goal)})


def among_a_million(bench: Bench) -> Iterator[Figure]:
    """The same worker on a queue that is full of others' tasks, beside one on an empty queue."""
    tasks, databases = bench.times(TASKS), [bench.own_database(Base.metadata) for _ in range(2)]
    fill(bench, databases[1], DrainTask)
    both = [bench.enter(drainers(engine, Workers(), tasks)) for engine in databases]
    sides = [Prepared(side.prepare, side.drain) for side in both]
    empty, full = rates(sides, rounds=min(bench.rounds, 3), block=tasks)
    yield figure("/s", full, empty)


WORKLOADS = [
    _drain(7, "drain, async handlers, 10 at once", 0.60, Workers()),
    _drain(7, "drain, async handlers, 100 at once", 0.60, Workers(concurrency=100)),
    _drain(8, "drain, sync handlers in 10 threads", 0.25, Workers("sync")),
    _drain(8, "drain, sync handlers in 100 threads", 0.25, Workers("sync", 100)),
    _drain(9, "drain, one async handler at a time", 0.25, Workers(concurrency=1)),
    _drain(9, "drain, one sync handler at a time", 0.25, Workers("sync", 1)),
    _drain(10, "drain, two processes", 1.4, Workers("two", processes=2), beside=Workers("one")),
    Workload(14, "drain among a million", "an empty queue", among_a_million, {"": ratio_at_least(0.90)}),
]


def _work(url: str, name: str, concurrency: int) -> None:
    """A worker, until its input ends; each line of that is answered: how many handlers it has run, and its CPU time."""
    DrainTask.handler(name)(plain_noop if name == "sync" else noop)
    worker = Worker(create_engine(url), [DrainTask], concurrency=concurrency)
    thread = Thread(target=worker.run)
    thread.start()
    for asked, _ in enumerate(sys.stdin):
        print(next(_calls) - asked, time.process_time(), flush=True)  # asking counts, too
    worker.request_stop()
    thread.join()


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
