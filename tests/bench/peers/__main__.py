"""The same workloads for sa_durable and its peers, in alternation, on a private server with fsync and
synchronous_commit on, a database for each."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from sqlalchemy import Engine, MetaData

from sa_durable.embedded import postgres
from tests.bench.machine import this_machine
from tests.bench.peers import report
from tests.bench.peers.contenders import CONTENDERS, ROOT, Contender, driver
from tests.bench.peers.rounds import Lock, measured
from tests.bench.peers.workloads import Workload, chosen
from tests.databases import throwaway

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}
PAGE = ROOT / "docs" / "benchmarks" / "peers.md"
RESULTS = PAGE.with_name("peers.json")
QUICK = {"rounds": 1, "scale": 0.05}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument("--only", default="", help="a part of a workload's name")
    parser.add_argument(
        "--peers", default="", help="parts of their names with commas between; sa_durable is one"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the operations in a round")
    parser.add_argument("--quick", action="store_true", help=f"does all of it run? as {QUICK}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--docs", action="store_true", help=f"renew {PAGE.name} and {RESULTS.name}")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="a file to lock, two minutes at a time, where others measure",
    )
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args()
    parts = [part.strip().lower() for part in options.peers.split(",")]
    contenders = [c for c in CONTENDERS if any(part in c.name.lower() for part in parts)]
    done = run(contenders, chosen(options.only), options)
    if options.json:
        options.json.write_text(report.as_json(done) + "\n")
    if options.docs:
        RESULTS.write_text(report.as_json(done) + "\n")
        PAGE.write_text(report.renewed(PAGE.read_text(), done))
    report.print_table(done)
    return any(figure.error for row in done.rows for figure in row.figures.values())


def run(
    contenders: list[Contender], workloads: list[Workload], options: argparse.Namespace
) -> report.Results:
    progress = Console(stderr=True, highlight=False, markup=False)
    for contender in contenders:
        contender.python()  # made before anything is measured
    with ExitStack() as stack:
        server = stack.enter_context(postgres(settings=SETTINGS, durable=True, environ={}))
        engines = [stack.enter_context(throwaway(server.url, MetaData())) for _ in contenders]
        machine = this_machine(engines[0])
        drivers = [
            stack.enter_context(driver(contender, libpq(engine)))
            for contender, engine in zip(contenders, engines, strict=True)
        ]
        began = time.monotonic()
        sides = measured(
            drivers,
            workloads,
            rounds=options.rounds,
            scale=options.scale,
            lock=Lock(options.lock) if options.lock else None,
            say=lambda line: progress.print(f"{time.monotonic() - began:5.0f} s  {line}", soft_wrap=True),
        )
        return report.results(
            machine,
            drivers,
            workloads,
            sides,
            rounds=options.rounds,
            scale=options.scale,
            seconds=time.monotonic() - began,
        )


def libpq(engine: Engine) -> str:
    """Its URL, as everybody understands it."""
    return engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


if __name__ == "__main__":
    sys.exit(main())
