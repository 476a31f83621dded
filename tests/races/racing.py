"""Many callers at once, and how the server judges them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

from sqlalchemy import Engine, NullPool, create_engine, text

from tests.databases import end_sessions
from tests.waiting import wait_until

T = TypeVar("T")
Step = Callable[[], T]


def race(rounds: int, callers: int, prepare: Callable[[int, int], Step[T]]) -> list[list[T]]:
    """In each round every caller prepares, in a thread of its own, and then all take their steps at once.

    Returns what the steps returned, by round and caller.
    """
    barrier = Barrier(callers, timeout=60)
    outcomes: list[list[T]] = [[] for _ in range(rounds)]

    def run(caller: int) -> list[T]:
        try:
            taken = []
            for number in range(rounds):
                step = prepare(number, caller)
                barrier.wait()
                taken.append(step())
        except BaseException:
            barrier.abort()
            raise
        return taken

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(run, caller) for caller in range(callers)]
    errors = [error for future in futures if (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    for future in futures:
        for number, outcome in enumerate(future.result()):
            outcomes[number].append(outcome)
    return outcomes


@contextmanager
def no_deadlock(engine: Engine) -> Iterator[None]:
    """The server resolves no deadlock in this database meanwhile. Disposes of the engine's connections: a backend
    reports what it has counted when it ends."""
    end_sessions(engine)  # else what they have counted before might come while we look
    watching = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with watching.connect() as connection:

        def backends() -> set[int]:
            here = (
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            return set(connection.scalars(text(here)))

        def deadlocks() -> int:
            counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            return connection.scalar(text(counted))

        present, before = backends(), deadlocks()
        yield
        engine.dispose()
        wait_until(lambda: backends() <= present, what="the racers' connections to end")
        assert deadlocks() == before
