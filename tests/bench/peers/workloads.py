"""What everybody does, and what sa_durable is held to beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["/s", "ms"]
US = "sa_durable"


@dataclass(frozen=True)
class Workload:
    """`number` operations in a round; those who are slower do as many as fill `SECONDS`, but not fewer than `least`.
    Where the unit is ms, each operation has its latency, and everybody does `number`."""

    name: str
    order: str  # as drivers know it
    number: int
    concurrency: int | None = None
    least: int = 100
    pause: float = 0.0  # seconds between two pick-ups
    slices: int = 1  # of a round, in turn: what waits for the disk feels every other program's writes
    unit: Unit = "/s"


SECONDS = 0.7
WORKLOADS = [
    Workload("spawn, one a commit", "spawn", 2000, slices=4),
    Workload("spawn with a fresh key, one a commit", "spawn keyed", 2000, slices=4),
    Workload("the same between BEGIN and COMMIT", "spawn in a transaction", 2000, slices=4),
    Workload("spawn with a key that is held", "duplicate", 4000, slices=2),
    Workload("bulk, 10,000 tasks", "bulk", 10_000, least=10_000),
    Workload("bulk, 10,000 tasks with fresh keys", "bulk keyed", 10_000, least=10_000),
    Workload("drain no-ops, one at a time", "drain", 4000, 1, least=200),
    Workload("drain no-ops, concurrency 10", "drain", 20_000, 10, least=600),
    Workload("drain no-ops, concurrency 100", "drain", 20_000, 100, least=600),
    Workload("drain no-ops, at their best", "drain", 20_000, least=600),
    Workload("checkpointed steps of a task", "steps", 1000),
    Workload("pick-up by a worker idle for 0.2 s", "pick-up", 10, pause=0.2, unit="ms"),
    Workload("pick-up, a task every 40 ms", "pick-up", 12, pause=0.04, unit="ms"),
    Workload("16 race for a key, a round", "race", 60, unit="ms"),
]


@dataclass(frozen=True)
class Goal:
    """The ratio, round by round, of ours in `workload` to the best of `rivals` in any of `beside`."""

    workload: str
    rivals: tuple[str, ...]  # empty: all
    bound: float
    beside: tuple[str, ...] = ()  # empty: the same workload

    def __str__(self) -> str:
        rivals = " or ".join(self.rivals) or "every peer"
        beside = f" in {' or '.join(self.beside)}" if self.beside else ""
        return f"{self.workload}: ≥ {self.bound:g} times {rivals}{beside}"


PGQUEUER = ("PgQueuer", "PgQueuer/psycopg")
TEN, BEST = WORKLOADS[7].name, WORKLOADS[9].name
GOALS = [
    *(Goal(workload.name, (), 1.0) for workload in WORKLOADS[:2]),
    Goal("bulk, 10,000 tasks with fresh keys", PGQUEUER, 1.2),
    Goal(TEN, PGQUEUER, 1.2, beside=(TEN, BEST)),
    Goal(TEN, ("absurd-sdk",), 10.0),
]


def chosen(only: str) -> list[Workload]:
    """Those with `only` in their name."""
    return [workload for workload in WORKLOADS if only.lower() in workload.name.lower()]
