"""Write docs/benchmarks from the JSON of a run: the tables in README.md, and the chart (`make bench-docs`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from tests.bench.results import Results, Row, from_json, short

PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"
RESULTS, PAGE, CHART = "results.json", "README.md", "figures.svg"
BEGIN, END = "<!-- the run -->", "<!-- /the run -->"


def write(folder: Path) -> None:
    results = from_json((folder / RESULTS).read_bytes())
    page = folder / PAGE
    page.write_text(renewed(page.read_text(), results))
    from tests.bench.charting import draw  # noqa: PLC0415 - it takes a second, and a library that tests don't need

    draw(results, folder / CHART)


def renewed(page: str, results: Results) -> str:
    """Return the page with this run's tables between the marks."""
    head, rest = page.split(BEGIN)
    return "\n".join([head + BEGIN, *_run(results), END + rest.split(END)[1]])


def _run(results: Results) -> Iterator[str]:
    machine = results.machine
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield from paragraph(
        f"{machine.summary()}. {versions}. PostgreSQL: {machine.settings_line()}. {results.rounds} rounds, scale {results.scale:g}, {results.big:,} rows in "
        f"the big tables, {results.tasks:,} tasks through the queue that grows; "
        f"{results.seconds / 60:.0f} minutes in all."
    )
    yield ""
    goals = [row for row in results.rows if row.goal is not None]
    missed = [row for row in goals if not row.met]
    yield f"{len(goals) - len(missed)} of {len(goals)} figures with a goal meet it."
    if missed:
        yield ""
        yield "Missed:"
        yield ""
        yield from (f"- {_number(row)}{row.what}: {_value(row)}, goal {row.goal}" for row in missed)
    yield ""
    yield "| # | workload / limit | limit | ours | ratio | min to max | goal |"
    yield "|---|---|---|---|---|---|---|"
    for _, rows in groupby(results.rows, key=lambda row: row.workload):
        yield from (_line(row, first=at == 0) for at, row in enumerate(rows))
    yield ""


def paragraph(content: str, *, indent: str = "") -> list[str]:
    """Return the lines of a paragraph, or of a list item if `indent` is given, at most 100 columns each."""
    return wrap(content, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _number(row: Row) -> str:
    return f"{row.number}: " if row.number else ""


def _value(row: Row) -> str:
    assert row.figure is not None
    assert row.goal is not None
    if row.goal.of == "ratio" and row.figure.ratio:
        return f"{row.figure.ratio.median:.2f}"
    return f"{short(row.figure.ours.median)} {row.figure.unit}"


def _line(row: Row, *, first: bool) -> str:
    what = row.what if first or row.figure is None else row.figure.name
    if first and row.limit:
        what += f" / {row.limit}"
    if (figure := row.figure) is None:
        return f"| {row.number or ''} | {what} | failed: `{row.error}` | | | | |"
    spread = figure.ratio or figure.ours
    cells = [
        str(row.number or "") if first else "",
        what,
        f"{short(figure.limit.median)} {figure.unit}" if figure.limit else "",
        f"{short(figure.ours.median)} {figure.unit}",
        f"{figure.ratio.median:.2f}" if figure.ratio else "",
        f"{short(spread.lowest)} to {short(spread.highest)}" if spread.lowest < spread.highest else "",
        f"{row.goal}{'' if row.met else ' **missed**'}" if row.goal else "",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGES)
