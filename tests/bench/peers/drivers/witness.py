"""Whether the work was done: asked of the peer's tables, in SQL of ours, on a connection of our own."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import psycopg
from speak import Answer

PATIENCE = 120.0


class Witness:
    """A connection in autocommit, on which nothing is measured. One for the whole life of a driver."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def run(self, *statements: str) -> None:
        for statement in statements:
            self._connection.execute(statement)

    def empty(self, *tables: str) -> None:
        """As new: without rows, and without what dead ones leave behind."""
        self.run(f"TRUNCATE {', '.join(tables)} CASCADE")

    def settle(self, *tables: str) -> None:
        """What autovacuum would have done after a bulk insert, before the clock runs."""
        self.run(f"VACUUM ANALYZE {', '.join(tables)}")

    def ask(self, query: str) -> Any:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def expect(self, query: str, value: object) -> None:
        found = self.ask(query)
        assert found == value, f"{query}: {found}, not {value}"

    def wait(self, query: str, value: object) -> None:
        """Until it is so. Looks every millisecond."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.ask(query)) != value:
            assert time.monotonic() < deadline, f"{query}: {found}, not {value}, for {PATIENCE} s"
            time.sleep(0.001)


class Drain:
    """The clock of a drain: from the start of the first handler until the tables say that all tasks are done.

    What a worker needs to start up isn't measured. The tables are asked only once all handlers have been called.
    """

    def __init__(self, witness: Witness, number: int, done: str) -> None:
        self._witness, self._number, self._done = witness, number, done
        self._all = Event()
        self._began = 0.0
        self.calls = 0
        self.total = 0  # of the handlers' arguments, which count from 0

    def called(self, argument: int) -> None:
        """In each handler, which all run in one thread."""
        if not self.calls:
            self._began = time.perf_counter()
        self.calls += 1
        self.total += argument
        if self.calls == self._number:
            self._all.set()

    def wait(self) -> Answer:
        """In another thread. Checks that each task ran once."""
        assert self._all.wait(PATIENCE), f"{self.calls} of {self._number} handlers in {PATIENCE} s"
        self._witness.wait(self._done, self._number)
        seconds = time.perf_counter() - self._began
        assert self.calls == self._number, f"{self.calls} handlers for {self._number} tasks"
        assert self.total == sum(range(self._number))
        return {"seconds": seconds, "number": self._number}
