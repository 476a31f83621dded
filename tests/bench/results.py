"""A run of the suite: what was measured, where, and whether it met its goals; as JSON and as a table."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure, Goal
from tests.bench.machine import Machine
from tests.bench.workload import Bench, Workload


@dataclass(frozen=True)
class Row:
    """A figure of a workload; or, without one, what went wrong."""

    number: int | None
    workload: str
    limit: str
    figure: Figure | None
    goal: Goal | None  # None: a report
    met: bool | None
    error: str = ""

    @property
    def what(self) -> str:
        """The workload, and which of its figures."""
        return f"{self.workload}: {self.figure.name}" if self.figure and self.figure.name else self.workload


@dataclass(frozen=True)
class Results:
    machine: Machine
    rounds: int
    scale: float
    big: int  # rows of the big tables
    tasks: int  # that went through to see what grows
    seconds: float
    rows: list[Row]


def measured(
    workloads: list[Workload],
    bench: Bench,
    machine: Machine,
    keep: Callable[[Results], object] = lambda _: None,
) -> Results:
    """What all of them come to. One that raises is reported, and the others are measured all the same. `keep` is given what
    there is after each of them."""
    rows: list[Row] = []
    began = time.monotonic()

    def so_far() -> Results:
        spent = round(time.monotonic() - began, 1)
        return Results(machine, bench.rounds, bench.scale, bench.rows, bench.tasks, spent, rows)

    for at, workload in enumerate(workloads, 1):
        spent = time.monotonic() - began
        bench.say(f"{spent:5.0f} s  {at}/{len(workloads)}  {_number(workload)} {workload.name}")
        rows += _rows(workload, bench)
        keep(so_far())
    return so_far()


def _rows(workload: Workload, bench: Bench) -> Iterable[Row]:
    about = workload.number, workload.name, workload.limit
    try:
        for figure in workload.figures(bench):
            goal = workload.goals.get(figure.name)
            yield Row(*about, figure, goal, goal and goal.met(figure))
    except Exception as error:
        bench.say(traceback.format_exc())
        yield Row(*about, None, None, None, repr(error))


_JSON = TypeAdapter(Results)


def as_json(results: Results) -> str:
    return _JSON.dump_json(results, indent=1).decode()


def from_json(text: str | bytes) -> Results:
    return _JSON.validate_json(text)


def table(results: Results) -> Table:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    title = f"{machine.date}; {machine.cores} cores, {versions}; {results.rounds} rounds, medians"
    shown = Table(title=title)
    for column in ("#", "workload / limit", "limit", "ours", "unit", "ratio", "min to max", "goal"):
        shown.add_column(column, justify="left" if column in ("workload / limit", "unit") else "right")
    workload = None
    for row in results.rows:
        if row.workload != workload:
            what = f"{row.workload} / {row.limit}" if row.limit else row.workload
            if row.figure is not None and row.figure.name:  # a line for each of its figures
                shown.add_row(_number(row), what)
            workload = row.workload
        shown.add_row(*_cells(row))
    return shown


def _number(of: Row | Workload) -> str:
    return str(of.number or "-")


def _cells(row: Row) -> list[str]:
    what = f"{row.workload} / {row.limit}" if row.limit else row.workload
    if (figure := row.figure) is None:
        return [_number(row), what, "", "[red]" + row.error]
    mark = {True: "[green]", False: "[red]", None: ""}[row.met]
    ratio, spread = figure.ratio, figure.ratio or figure.ours
    return [
        "" if figure.name else _number(row),
        f"  {figure.name}" if figure.name else what,
        short(figure.limit.median) if figure.limit else "",
        ("" if ratio else mark) + short(figure.ours.median),
        figure.unit,
        f"{mark}{ratio.median:.2f}" if ratio else "",
        f"{short(spread.lowest)} to {short(spread.highest)}" if spread.lowest < spread.highest else "",
        f"{mark}{row.goal or ''}",
    ]


def short(value: float) -> str:
    """Three digits that count, and all those before the point."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def print_table(results: Results) -> None:
    console = Console(width=max(140, Console().width))
    console.print(table(results))
    missed = sum(row.met is False for row in results.rows)
    failed = sum(bool(row.error) for row in results.rows)
    machine = results.machine
    settings = ", ".join(f"{name} {value}" for name, value in machine.settings.items())
    console.print(f"{machine.processor}, {machine.memory_gb} GB, {machine.system}, load {machine.load}")
    console.print(f"{settings}; commit {machine.commit}, scale {results.scale:g}")
    console.print(f"{missed} goals missed, {failed} workloads failed, {results.seconds:,.0f} seconds")
