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

from sa_durable.embedded import postgres
from tests.bench import spawning as b
from tests.bench.models import Base, BigTask, SmallTask, fill
from tests.databases import throwaway


@dataclass(frozen=True)
class Measure:
    """Seconds for `number` operations, of a limit and of us, in alternating order, round by round."""

    name: str
    number: int
    goal: float  # limit's seconds / ours, at least
    limit: Callable[[], object]
    ours: Callable[[], object]


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
    return [
        Measure("spawn, fresh key, one a commit / bare Core", one, 0.85, b.core_spawn(engine, s, one), b.durable_spawn(engine, s, one)),
        Measure(
            "duplicate spawn / bare conflict + select", one, 1 / 1.3,
            b.core_duplicate(engine, s, one, held[s]), b.durable_duplicate(engine, s, one, held[s]),
        ),
        Measure("spawn_many, fresh keys / raw psycopg unnest", many, 0.4, b.raw_bulk(engine, s, many), b.durable_bulk(engine, s, many)),
        Measure("spawn, 1M rows / empty", one, 0.85, b.durable_spawn(engine, s, one), b.durable_spawn(engine, big, one)),
        Measure(
            "duplicate spawn, 1M rows / empty", one, 0.85,
            b.durable_duplicate(engine, s, one, held[s]), b.durable_duplicate(engine, big, one, held[big]),
        ),
        Measure("spawn_many, 1M rows / empty", many, 0.85, b.durable_bulk(engine, s, many), b.durable_bulk(engine, big, many)),
    ]  # fmt: skip


def run(measure: Measure, rounds: int, reset: Callable[[], None]) -> Figure:
    limits, ours = [], []
    for i in range(rounds + 1):
        reset()
        for which in (0, 1) if i % 2 else (1, 0):
            (limits, ours)[which].append(b.seconds((measure.limit, measure.ours)[which]))
    del limits[0], ours[0]  # warm-up
    ratios = [limit / our for limit, our in zip(limits, ours, strict=True)]
    rate = [measure.number / statistics.median(times) for times in (limits, ours)]
    return Figure(measure.name, *rate, statistics.median(ratios), min(ratios), max(ratios), measure.goal)


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
