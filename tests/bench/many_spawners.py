"""Workloads 5 and 6: many who spawn at once. Distinct keys from eight processes, and one key from sixteen threads."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from subprocess import PIPE, Popen

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask
from tests.bench import spawning
from tests.bench.models import HANDLERS, SmallTask, filled
from tests.bench.spawning import alternating, bare_insert, bare_select, fresh_key, row_of
from tests.bench.workload import Bench, Side
from tests.children import complete_lines, read_line
from tests.databases import url_of

PROCESSES, RACERS = 8, 16
_MODELS = {model.__queue__: model for model in HANDLERS}
SPAWNS = {
    "connection": spawning.core_spawn,
    "session": spawning.session_spawn,
    "durable": spawning.durable_spawn,
}


@contextmanager
def processes(engine: Engine) -> Iterator[list[Popen[str]]]:
    """Processes that do what a line on their input says: which of SPAWNS, in which queue, how often."""
    command = [sys.executable, "-m", "tests.bench.many_spawners", url_of(engine)]
    crowd = [Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(PROCESSES)]
    try:
        yield crowd
    finally:
        for process in crowd:
            process.stdin.close()
            process.wait()


def together(what: str, model: type[DurableTask] = SmallTask) -> Side:
    """All of them, so many together."""

    def side(bench: Bench, number: int) -> Callable[[], object]:
        crowd = bench.enter(processes(bench.once(filled(model))))
        each = number // len(crowd)

        def run() -> None:
            for process in crowd:
                process.stdin.write(f"{what} {model.__queue__} {each}\n")
                process.stdin.flush()
            for process in crowd:
                assert read_line(process) == "done"

        return run

    return side


def _process(url: str) -> None:
    """One of the processes, until its input ends."""
    engine = create_engine(url)
    for line in complete_lines(sys.stdin):
        what, queue, number = line.split()
        SPAWNS[what](engine, _MODELS[queue], int(number))()
        print("done", flush=True)


def session_racer(engine: Engine, model: type[DurableTask]) -> Callable[[str], bool]:
    """Limit: a bare insert in a Session and, for those that lose, a select of the winner's task."""
    insert, select = bare_insert(model), bare_select(model)

    def race(key: str) -> bool:
        with Session(engine) as session, session.begin():
            if session.execute(insert, row_of(key, 1)).first() is not None:
                return True
            assert session.execute(select, {"key": key}).first() is not None
            return False

    return race


def insert_racer(engine: Engine, model: type[DurableTask]) -> Callable[[str], bool]:
    """A bare insert on a Connection: those that lose don't know to whom."""
    insert = bare_insert(model)

    def race(key: str) -> bool:
        with engine.begin() as connection:
            return connection.execute(insert, row_of(key, 1)).first() is not None

    return race


def durable_racer(engine: Engine, model: type[DurableTask]) -> Callable[[str], bool]:
    handler = HANDLERS[model]

    def race(key: str) -> bool:
        with Session(engine) as session, session.begin():
            return Durable(session).spawn(handler.call(order_id=1), idempotency_key=key).created

    return race


@contextmanager
def _racers(url: str) -> Iterator[tuple[Engine, ThreadPoolExecutor]]:
    engine = create_engine(url, pool_size=RACERS)
    with ThreadPoolExecutor(RACERS) as threads:
        yield engine, threads
    engine.dispose()


def racing(
    racer: Callable[[Engine, type[DurableTask]], Callable[[str], bool]], model: type[DurableTask] = SmallTask
) -> Side:
    """So many rounds: sixteen threads, each with a connection and a transaction, start together for a key."""

    def side(bench: Bench, number: int) -> Callable[[], object]:
        engine, threads = bench.enter(_racers(url_of(bench.once(filled(model)))))
        race, start = racer(engine, model), threading.Barrier(RACERS)

        def run() -> None:
            keys = [fresh_key() for _ in range(number)]

            def rounds() -> int:
                won = 0
                for key in keys:
                    start.wait()
                    won += race(key)
                return won

            assert sum(f.result() for f in [threads.submit(rounds) for _ in range(RACERS)]) == number

        return run

    return side


WORKLOADS = [
    alternating(
        5, "8 processes spawn", "8 processes, bare Core in a Session", 0.85,
        (together("session"), together("durable")), operations=3200, block=800,
    ),
    alternating(
        5, "8 processes spawn, beside Connections", "8 processes, bare Core on a Connection", None,
        (together("connection"), together("durable")), operations=3200, block=800,
    ),
    alternating(
        6, "16 race for a key, rounds", "16 bare inserts, and selects, in Sessions", 0.80,
        (racing(session_racer), racing(durable_racer)), operations=200, block=10,
    ),
    alternating(
        6, "16 race for a key, rounds, beside inserts", "16 bare inserts on Connections, no selects", None,
        (racing(insert_racer), racing(durable_racer)), operations=200, block=10,
    ),
]  # fmt: skip

if __name__ == "__main__":
    _process(*sys.argv[1:])
