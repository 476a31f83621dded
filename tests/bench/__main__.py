"""Run the suite on a private server with fsync and synchronous_commit on, and print a table (or JSON)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from sqlalchemy import MetaData

from sa_durable.embedded import postgres
from tests.bench import results, suite
from tests.bench.machine import this_machine
from tests.bench.workload import Bench, Workload
from tests.databases import throwaway

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "max_connections": "300",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "none",  # but in databases that say otherwise
}
QUICK = {"rounds": 1, "scale": 0.05, "rows": 20_000, "tasks": 5000}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", default="", help="numbers, such as 1,7, or a part of a workload's name")
    parser.add_argument("--list", action="store_true", help="the workloads, and measure nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the operations in a round")
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the big tables")
    parser.add_argument("--tasks", type=int, default=200_000, help="that go through to see what grows")
    parser.add_argument("--quick", action="store_true", help=f"does all of it run? as {QUICK}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results there as they come; - prints them"
    )
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    chosen = suite.chosen(suite.workloads(), options.only)
    if options.list or not chosen:
        show(chosen)
        return 0 if chosen else 2
    printing = str(options.json) == "-"
    file = None if printing else options.json

    def keep(so_far: results.Results) -> None:
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(results.as_json(so_far) + "\n")

    done = run(chosen, options, keep)
    if printing:
        print(results.as_json(done))
    else:
        results.print_table(done)
    return any(row.error for row in done.rows)


def show(workloads: list[Workload]) -> None:
    for workload in workloads:
        goals = ", ".join(f"{name} {goal}".strip() for name, goal in workload.goals.items())
        print(
            f"{workload.number or '-':>2}  {workload.name}{workload.limit and ' / '}{workload.limit}: {goals}"
        )


def run(
    workloads: list[Workload], options: argparse.Namespace, keep: Callable[[results.Results], None]
) -> results.Results:
    progress = Console(stderr=True, highlight=False, markup=False)
    with (
        postgres(settings=SETTINGS, durable=True) as server,
        throwaway(server.url, MetaData()) as engine,
    ):
        given = {name: getattr(options, name) for name in ("rounds", "scale", "rows", "tasks")}
        bench = Bench(engine, server.url, **given, say=progress.print)
        return results.measured(workloads, bench, this_machine(engine), keep)


if __name__ == "__main__":
    sys.exit(main())
