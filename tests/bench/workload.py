"""A workload: a line of the suite, which measures something beside its limit; and what it measures with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Engine, MetaData

from tests.bench.alternation import Run, rates
from tests.bench.figures import Figure, Goal, figure
from tests.databases import throwaway

T = TypeVar("T")


@dataclass
class Bench:
    """What a workload is given: the run's database, and how much to measure."""

    engine: Engine
    server_url: str
    rounds: int = 5
    scale: float = 1.0
    rows: int = 1_000_000  # in tables that are to be big
    tasks: int = 100_000  # that go through a queue to see what grows
    say: Callable[[str], None] = lambda _: None
    _stack: ExitStack = field(default_factory=ExitStack)
    _done: dict[Any, Any] = field(default_factory=dict)

    def times(self, number: int, *, least: int = 1) -> int:
        """So many, at this run's scale."""
        return max(least, int(number * self.scale))

    def enter(self, resource: AbstractContextManager[T]) -> T:
        """Its value; it is exited when the workload has been measured."""
        return self._stack.enter_context(resource)

    def own_database(self, metadata: MetaData) -> Engine:
        """A database that nobody else uses, until the workload has been measured."""
        return self.enter(throwaway(self.server_url, metadata))

    def once(self, make: Callable[[Bench], T]) -> T:
        """What `make` returned when it was first asked for in this run: tables that several workloads share."""
        if make not in self._done:
            self._done[make] = make(self)
        return self._done[make]

    def close(self) -> None:
        self._stack.close()


Side = Callable[[Bench, int], Run]
"""Makes what runs so many operations of one side."""


@dataclass(frozen=True)
class Workload:
    """`number` is that of the table in issue 5; None if it isn't there. `goals` go by the names of figures."""

    number: int | None
    name: str
    limit: str  # in words; empty for a report
    measure: Callable[[Bench], Iterable[Figure]]
    goals: Mapping[str, Goal] = field(default_factory=dict)

    def figures(self, bench: Bench) -> Iterator[Figure]:
        try:
            for measured in self.measure(bench):
                bench.say(f"    {measured.name} {measured.ours.median:,.4g} {measured.unit}")
                yield measured
        finally:
            bench.close()


def pair(
    number: int | None,
    name: str,
    *,
    limit: str,
    goal: Goal | None,
    operations: int,
    sides: tuple[Side, Side],
    block: int | None = None,
    unit: str = "/s",
    before: Callable[[Bench], object] = lambda _: None,
) -> Workload:
    """A workload that does a number of operations a second: the limit's side and ours, `block` operations at a time,
    in alternation. Without `block`, all operations of a round are one. `before` each round something is put right."""

    def measure(bench: Bench) -> Iterator[Figure]:
        many = bench.times(operations)
        step = min(block or many, many)
        of_limit, ours = rates(
            [side(bench, step) for side in sides],
            rounds=bench.rounds,
            blocks=many // step,
            block=step,
            before=lambda: before(bench),
        )
        yield figure(unit, ours, of_limit)

    return Workload(number, name, limit, measure, {"": goal} if goal else {})
