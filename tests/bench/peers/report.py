"""Report the results of a run: JSON, a table for the terminal, and one in Markdown for the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from tests.bench.documents import paragraph
from tests.bench.figures import Spread, p95, spread
from tests.bench.machine import Machine
from tests.bench.peers.contenders import Driver
from tests.bench.peers.rounds import Measured, Side
from tests.bench.peers.workloads import GOALS, US, Goal, Workload
from tests.bench.results import short

BEGIN, END = "<!-- the run -->", "<!-- /the run -->"


@dataclass(frozen=True)
class Figure:
    """`p95` is that of all latencies of all rounds."""

    number: int  # of operations in a round
    value: Spread | None
    p95: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    figures: dict[str, Figure]  # by contender; who isn't there can't do it


@dataclass(frozen=True)
class Verdict:
    goal: str
    ratio: Spread
    met: bool


@dataclass(frozen=True)
class Results:
    machine: Machine
    rounds: int
    scale: float
    seconds: float
    versions: dict[str, dict[str, str]]  # of what a contender runs on
    rows: list[Row]
    goals: list[Verdict]


def results(
    machine: Machine,
    drivers: Sequence[Driver],
    workloads: Sequence[Workload],
    sides: Measured,
    *,
    rounds: int,
    scale: float,
    seconds: float,
) -> Results:
    rows = [
        Row(w.name, w.unit, {name: _figure(side) for name, side in sides[w.name].items()}) for w in workloads
    ]
    versions = {driver.contender.name: driver.versions for driver in drivers}
    return Results(machine, rounds, scale, round(seconds, 1), versions, rows, list(verdicts(sides)))


def _figure(side: Side) -> Figure:
    if side.error or not side.values:
        return Figure(side.number, None, error=side.error)
    return Figure(side.number, spread(side.values), p95(side.latencies) if side.latencies else None)


def verdicts(sides: Measured) -> Iterator[Verdict]:
    """Of the goals for which there are figures of ours and of a rival."""
    for goal in GOALS:
        ours, theirs = _values(goal, sides)
        if ours and theirs:
            ratios = spread([mine / max(best) for mine, *best in zip(ours, *theirs, strict=True)])
            yield Verdict(str(goal), ratios, ratios.median >= goal.bound)


def _values(goal: Goal, sides: Measured) -> tuple[list[float], list[list[float]]]:
    ours = sides.get(goal.workload, {}).get(US, Side())
    theirs = [
        side.values
        for workload in goal.beside or (goal.workload,)
        for name, side in sides.get(workload, {}).items()
        if name != US and (name in goal.rivals or not goal.rivals) and side.values and not side.error
    ]
    return ([] if ours.error else ours.values), theirs


def as_json(done: Results) -> str:
    return json.dumps(asdict(done), indent=1, ensure_ascii=False)


def print_table(done: Results) -> None:
    console = Console(width=max(150, Console().width))
    shown = Table(title=f"{done.machine.date}; {done.rounds} rounds, medians; a second, or ms (p50 / p95)")
    shown.add_column("workload")
    for name in done.versions:
        shown.add_column(name, justify="right")
    for row in done.rows:
        shown.add_row(
            f"{row.name}, {row.unit}",
            *(_cell(row.figures.get(name), " [dim]", "[/dim]", "[red]failed") for name in done.versions),
        )
    console.print(shown)
    for line in _goals(done):
        console.print(line, highlight=False)
    for row in done.rows:
        for name, figure in row.figures.items():
            if figure.error:
                console.print(f"[red]{row.name}, {name}:", figure.error)


def renewed(page: str, done: Results) -> str:
    """Return the page with this run's table between the marks."""
    head, rest = page.split(BEGIN)
    return "\n".join([head + BEGIN, "", *markdown(done), "", END + rest.split(END)[1]])


def markdown(done: Results) -> Iterator[str]:
    machine, names = done.machine, list(done.versions)
    yield from paragraph(
        f"{machine.summary()}. "
        f"Python {machine.versions['Python']}, PostgreSQL {machine.versions['PostgreSQL']}: {machine.settings_line()}. "
        f"{done.rounds} rounds, scale {done.scale:g}, {done.seconds / 60:.0f} minutes."
    )
    yield ""
    for name, versions in done.versions.items():
        yield f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"
    yield from ("", f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}")
    for row in done.rows:
        cells = [_cell(row.figures.get(name), "<br><small>", "</small>", "failed") for name in names]
        yield f"| {row.name}, {row.unit} | {' | '.join(cells)} |"
    yield ""
    for line in _goals(done):
        yield from paragraph(f"- {line}", indent="  ")


def _cell(figure: Figure | None, low: str, end: str, failed: str) -> str:
    if figure is None:
        return "-"
    if figure.value is None:
        return failed
    value = figure.value
    if figure.p95:
        return f"{short(value.median)} / {short(figure.p95)}"
    return f"{_round(value.median)}{low}{_round(value.lowest)} to {_round(value.highest)}{end}"


def _round(value: float) -> str:
    return short(float(f"{value:.3g}"))


def _goals(done: Results) -> list[str]:
    return [
        f"{'met' if verdict.met else 'missed'}: {verdict.goal}: {verdict.ratio.median:.2f} "
        f"({verdict.ratio.lowest:.2f} to {verdict.ratio.highest:.2f})"
        for verdict in done.goals
    ]
