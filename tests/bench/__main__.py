"""Run the suite on a private server with fsync and synchronous_commit on, and print a table (or JSON)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import psycopg
import sqlalchemy
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from sa_durable import DurableTask
from sa_durable.embedded import postgres
from tests.bench import spawning as b
from tests.bench.models import Base, BigTask, SmallTask, fill
from tests.databases import throwaway


@dataclass(frozen=True)
class Measure:
    """A limit and us, each for a number of operations; `block` of them at a time, in alternation, so that whatever
    else the machine does hits both alike."""

    name: str
    number: int  # in a round
    block: int
    goal: float  # limit's seconds / ours, at least
    limit: Callable[[int], Callable[[], object]]
    ours: Callable[[int], Callable[[], object]]


@dataclass(frozen=True)
class Figure:
    name: str
    limit_per_second: float
    ours_per_second: float
    ratio: float  # the median of the rounds' ratios
    lowest: float
    highest: float
    goal: float


def measures(engine: Engine, scale: float) -> list[Measure]:
    one, many = int(1000 * scale), int(10_000 * scale)
    held = {model: b.hold_key(engine, model) for model in (SmallTask, BigTask)}
    s, big = SmallTask, BigTask

    def on(what: Callable[..., Callable[[], object]], model: type[DurableTask], *args: object):
        return lambda number: what(engine, model, number, *args)

    return [
        Measure("spawn, fresh key, one a commit / bare Core", one, 20, 0.85, on(b.core_spawn, s), on(b.durable_spawn, s)),
        Measure("the same / bare Core in a Session", one, 20, 0.85, on(b.session_spawn, s), on(b.durable_spawn, s)),
        Measure(
            "duplicate spawn / bare conflict + select", one, 20, 1 / 1.3,
            on(b.core_duplicate, s, held[s]), on(b.durable_duplicate, s, held[s]),
        ),
        Measure(
            "the same / bare Core in a Session", one, 20, 1 / 1.3,
            on(b.session_duplicate, s, held[s]), on(b.durable_duplicate, s, held[s]),
        ),
        Measure("spawn_many, fresh keys / raw psycopg unnest", many, many, 0.4, on(b.raw_bulk, s), on(b.durable_bulk, s)),
        Measure("spawn, 1M rows / empty", one, 20, 0.85, on(b.durable_spawn, s), on(b.durable_spawn, big)),
        Measure(
            "duplicate spawn, 1M rows / empty", one, 20, 0.85,
            on(b.durable_duplicate, s, held[s]), on(b.durable_duplicate, big, held[big]),
        ),
        Measure("spawn_many, 1M rows / empty", many, many, 0.85, on(b.durable_bulk, s), on(b.durable_bulk, big)),
    ]  # fmt: skip


def run(measure: Measure, rounds: int, reset: Callable[[], None]) -> Figure:
    sides = measure.limit(measure.block), measure.ours(measure.block)
    rates: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        reset()
        spent = [0.0, 0.0]
        blocks = measure.number // measure.block
        for i in range(2 * blocks):
            which = (i + i // 2) % 2  # limit, ours, ours, limit, ...
            spent[which] += b.seconds(sides[which])
        rates.append((blocks * measure.block / spent[0], blocks * measure.block / spent[1]))
    del rates[0]  # warm-up
    ratios = [ours / limit for limit, ours in rates]
    limit, ours = (statistics.median(side) for side in zip(*rates, strict=True))
    return Figure(
        measure.name, limit, ours, statistics.median(ratios), min(ratios), max(ratios), measure.goal
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="of the operations in a round")
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the big table")
    parser.add_argument("--only", default="", help="measures whose name has this in it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}
    with postgres(settings=settings, durable=True) as server, throwaway(server.url, Base.metadata) as engine:
        with engine.connect() as connection:
            version = connection.scalar(text("SHOW server_version"))
        console = Console(stderr=True)
        console.print(f"filling {options.rows:,} rows ...")
        fill(engine, options.rows)
        autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

        def reset() -> None:
            """The small queue is empty but for the held key, the big one has its million; no vacuum is due."""
            with autocommit.connect() as connection:
                for table in ("durable_small_tasks", "durable_big_tasks"):
                    connection.execute(
                        text(
                            f"DELETE FROM {table} WHERE idempotency_key LIKE 'bench:%' AND params <> '{{\"order_id\": 1}}'"
                        )
                    )
                    connection.execute(text(f"VACUUM {table}"))

        figures = []
        for measure in measures(engine, options.scale):
            if options.only in measure.name:
                console.print(f"measuring {measure.name} ...")
                figures.append(run(measure, options.rounds, reset))
    machine = f"{os.cpu_count()} cores, PostgreSQL {version}, SQLAlchemy {sqlalchemy.__version__}, psycopg {psycopg.__version__}, Python {platform.python_version()}"
    if options.json:
        print(json.dumps({"machine": machine, "figures": [asdict(f) for f in figures]}, indent=2))
        return 0
    table = Table(title=f"{machine}; {options.rounds} rounds, medians")
    for column in ("workload / limit", "limit/s", "ours/s", "ratio", "min to max", "goal"):
        table.add_column(column, justify="left" if column.startswith("workload") else "right")
    for f in figures:
        mark = "[green]" if f.ratio >= f.goal else "[red]"
        table.add_row(
            f.name, f"{f.limit_per_second:,.0f}", f"{f.ours_per_second:,.0f}", f"{mark}{f.ratio:.2f}",
            f"{f.lowest:.2f} to {f.highest:.2f}", f"{f.goal:.2f}",
        )  # fmt: skip
    Console(width=max(120, Console().width)).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
