"""What notifications cost those who spawn, and how soon an idle worker starts a task."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen

import psycopg
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask, Worker
from sa_durable.services import spawn as spawning
from tests.bench.figures import Figure, at_most, figure, p95, ratio_at_least
from tests.bench.models import HANDLERS, ClamorousTask, QuietTask, SmallTask, ToldTask, queues
from tests.bench.workload import Bench, Workload, pair
from tests.children import complete_lines, read_line
from tests.databases import url_of
from tests.waiting import wait_until

MODELS = {model.__queue__: model for model in (QuietTask, ToldTask, ClamorousTask)}
ALWAYS = "INSERT INTO durable_queues (name, notify_until) VALUES ('clamorous', 'infinity') ON CONFLICT (name) DO UPDATE SET notify_until = 'infinity'"


def unnotifying_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """Durable.spawn whose statement doesn't look whether anybody wants to be notified."""

    def run() -> None:
        known, spawning.can_notify = spawning.can_notify, lambda _connection: False
        try:
            spawn(engine, model, number)
        finally:
            spawning.can_notify = known

    return run


def notifying_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    return lambda: spawn(engine, model, number)


def spawn(engine: Engine, model: type[DurableTask], number: int) -> None:
    handler = HANDLERS[model]
    for i in range(number):
        with Session(engine) as session, session.begin():
            Durable(session).spawn(handler.call(order_id=i))


class Committers:
    """Processes that spawn, one task a commit, when they are told to; and a worker for each queue."""

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine = engine
        command = [sys.executable, "-m", "tests.bench.notifying", url_of(engine)]
        self._processes = [
            Popen([*command, "spawn"], stdin=PIPE, stdout=PIPE, text=True) for _ in range(number)
        ]
        self._workers = [Popen([*command, queue], stdin=PIPE, stdout=PIPE, text=True) for queue in MODELS]

    def spawns(self, model: type[DurableTask], number: int) -> Callable[[], object]:
        """All of them, `number` tasks together, as fast as they can."""
        each = number // len(self._processes)

        def run() -> None:
            for process in self._processes:
                process.stdin.write(f"{model.__queue__} {each}\n")
                process.stdin.flush()
            for process in self._processes:
                assert read_line(process) == "done"

        return run

    def settle(self) -> None:
        """Until the workers are through, and idle."""
        with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            for queue in MODELS:
                left = text(f"SELECT count(*) FROM durable_{queue}_tasks WHERE state <> 'completed'")
                wait_until(lambda: connection.scalar(left) == 0, timeout=120)  # noqa: B023 - called at once
                connection.execute(text(f"DELETE FROM durable_{queue}_tasks"))
                connection.execute(text(f"VACUUM durable_{queue}_tasks"))
            connection.execute(text(ALWAYS))
            asked = text("SELECT notify_until > now() FROM durable_queues WHERE name = 'told'")
            wait_until(lambda: connection.scalar(asked))

    def close(self) -> None:
        for process in (*self._processes, *self._workers):
            process.stdin.close()
            process.wait()


@contextmanager
def committers(engine: Engine, number: int) -> Iterator[Committers]:
    processes = Committers(engine, number)
    try:
        processes.spawns(QuietTask, number)()
        processes.settle()
        yield processes
    finally:
        processes.close()


def cost(bench: Bench) -> Iterator[Figure]:
    """Spawns a second of some committers while a worker runs what they spawn: nobody notifies; notifications until
    the worker is busy, as it is; each commit notifies. In turn; the worker has become busy before it counts, but for "from
    idle"."""
    engine = bench.once(queues)
    for number, warm_up, name in (
        (1, 100, "1 committer"),
        (2, 100, "2 committers"),
        (4, 100, "4 committers"),
        (8, 100, "8 committers"),
        (8, 0, "8 committers, from idle"),
    ):
        rates: dict[type[DurableTask], list[float]] = {model: [] for model in MODELS.values()}
        with committers(engine, number) as processes:
            for i in range(min(bench.rounds, 3)):
                tasks = number * bench.times(300)
                for model in list(rates) if i % 2 else list(rates)[::-1]:
                    if warm_up:
                        processes.spawns(model, number * warm_up)()
                    run = processes.spawns(model, tasks)
                    began = time.perf_counter()
                    run()
                    rates[model].append(tasks / (time.perf_counter() - began))
                    processes.settle()
        yield figure("/s", rates[ToldTask], rates[QuietTask], name=name)
        yield figure("/s", rates[ClamorousTask], rates[QuietTask], name=f"{name}, each commit notifies")


def pick_up(bench: Bench) -> Iterator[Figure]:
    """Milliseconds from before a COMMIT until a thread of ours, or a handler, knows: a raw NOTIFY, and a task for an
    idle worker in this process, with and without notifications; in alternation."""
    engine = bench.once(queues)
    raw, told = bench.enter(_raw(engine)), bench.enter(_worker(engine, ToldTask))
    quiet = bench.enter(_worker(engine, QuietTask))
    medians: list[tuple[float, float, float]] = []
    tails: list[tuple[float, float, float]] = []
    for _ in range(bench.rounds):
        taken: dict[Callable[[], float], list[float]] = {raw: [], told: [], quiet: []}
        for i in range(bench.times(100, least=10)):
            for measure, times in taken.items():
                if measure is not quiet or i % 5 == 0:
                    times.append(1000 * measure())
                    time.sleep(0.02)  # idle
        medians.append(tuple(statistics.median(taken[m]) for m in (raw, told, quiet)))
        tails.append(tuple(p95(taken[m]) for m in (raw, told, quiet)))
    for name, rounds in (("p50", medians), ("p95", tails)):
        limit, notified, polled = zip(*rounds, strict=True)
        yield figure("ms", notified, limit, name=name)
        yield figure("ms", polled, limit, name=f"{name}, notify=False")


@contextmanager
def _raw(engine: Engine) -> Iterator[Callable[[], float]]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    heard, ended = threading.Event(), threading.Event()
    at = [0.0]
    with psycopg.connect(url, autocommit=True) as listens, psycopg.connect(url) as sends:
        listens.execute("LISTEN bench")
        listens.execute("CREATE TABLE IF NOT EXISTS bench_rows (n integer)")

        def listen() -> None:
            while not ended.is_set():
                for _ in listens.notifies(timeout=0.1):
                    at[0] = time.perf_counter()
                    heard.set()

        thread = threading.Thread(target=listen)
        thread.start()

        def measure() -> float:
            heard.clear()
            sends.execute("INSERT INTO bench_rows VALUES (1)")  # with something to write, as a spawn has
            sends.execute("NOTIFY bench")
            began = time.perf_counter()
            sends.commit()
            assert heard.wait(10)
            return at[0] - began

        yield measure
        ended.set()
        thread.join()


_started = threading.Event()
_at = [0.0]


async def started(ctx: object) -> None:
    _at[0] = time.perf_counter()
    _started.set()


STARTED = {model: model.handler("started")(started) for model in (ToldTask, QuietTask)}


@contextmanager
def _worker(engine: Engine, model: type[DurableTask]) -> Iterator[Callable[[], float]]:
    worker = Worker(engine, [model], notify=model is not QuietTask)
    thread = threading.Thread(target=worker.run)
    thread.start()

    def measure() -> float:
        _started.clear()
        with Session(engine) as session, session.begin():
            Durable(session).spawn(STARTED[model].call())
            began = time.perf_counter()
        assert _started.wait(10)
        return _at[0] - began

    try:
        measure()
        time.sleep(0.5)
        yield measure
    finally:
        worker.request_stop()
        thread.join()


def _spawns(what: Callable[..., Callable[[], object]]):
    return lambda bench, number: what(bench.once(queues), SmallTask, number)


COMMITTERS = {"8 committers": ratio_at_least(0.90)}
WORKLOADS = [
    Workload(13, "idle pick-up", "raw NOTIFY", pick_up, {"p50": at_most(4), "p95": at_most(8)}),
    Workload(None, "notify cost: spawns while a worker runs them", "without NOTIFY", cost, COMMITTERS),
    pair(
        None,
        "spawn with the NOTIFY subquery",
        limit="without the subquery",
        goal=ratio_at_least(0.98),
        operations=1000,
        block=20,
        sides=(_spawns(unnotifying_spawn), _spawns(notifying_spawn)),
    ),
]


def _process(url: str, role: str) -> None:
    """A committer, or the worker of a queue, until its input ends."""
    engine = create_engine(url)
    if role in MODELS:
        worker = Worker(engine, [MODELS[role]], concurrency=10, notify=role == "told")
        threading.Thread(target=worker.run, daemon=True).start()
        sys.stdin.read()
        worker.request_stop()
        worker.closed.wait(10)
        return
    for line in complete_lines(sys.stdin):
        queue, number = line.split()
        spawn(engine, MODELS[queue], int(number))
        print("done", flush=True)


if __name__ == "__main__":
    _process(*sys.argv[1:])
