"""The chart of a run: what share of each limit we reach, and what share of each bound we use."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from tests.bench.figures import Spread
from tests.bench.results import Results, Row, short

MET, MISSED, GOAL = "#2a7f9e", "#c4572f", "#222222"
mpl.rcParams.update(
    {"svg.hashsalt": "sa_durable", "svg.fonttype": "none", "font.size": 9}
)  # the same bytes each time


def draw(results: Results, path: Path) -> None:
    measured = [row for row in results.rows if row.figure is not None and row.goal is not None]
    shares = [row for row in measured if row.goal.least]
    bounds = [row for row in measured if row not in shares]
    canvas = Canvas(figsize=(9, 1.6 + 0.26 * len(measured)), layout="constrained")
    upper, lower = canvas.subplots(2, 1, height_ratios=[max(1, len(shares)), max(1, len(bounds))])
    _shares(upper, shares)
    _bounds(lower, bounds)
    machine = results.machine
    canvas.suptitle(
        f"{machine.date}, {machine.cores} cores, PostgreSQL {machine.versions['PostgreSQL']}, fsync on",
        fontsize=9,
    )
    canvas.savefig(path, format="svg", metadata={"Date": None})


def _shares(axes: Axes, rows: list[Row]) -> None:
    """Bars of the median, lines from the lowest to the highest round, a mark where the goal is."""
    for at, row in enumerate(rows):
        ratio, bound = row.figure.ratio, row.goal.bound
        if row.goal.of == "ours":  # per cent
            ratio, bound = Spread(*(value / 100 for value in vars(row.figure.ours).values())), bound / 100
        axes.barh(at, ratio.median, color=MET if row.met else MISSED, height=0.7)
        axes.plot([ratio.lowest, ratio.highest], [at, at], color=GOAL, linewidth=0.8)
        axes.plot([bound] * 2, [at - 0.42, at + 0.42], color=GOAL, linewidth=2)
        label = f" {ratio.median:.2f}   {short(row.figure.ours.median)}{row.figure.unit}"
        axes.text(max(ratio.highest, bound), at, label, va="center", fontsize=7.5)
    _dress(axes, rows, "share of the limit (black: the goal)", 1.0)


def _bounds(axes: Axes, rows: list[Row]) -> None:
    """Bars of our figure as a share of the bound."""
    for at, row in enumerate(rows):
        figure = row.figure
        ours = figure.ratio if row.goal.of == "ratio" and figure.ratio else figure.ours
        unit = "" if row.goal.of == "ratio" else f" {figure.unit}"
        share = ours.median / row.goal.bound
        axes.barh(at, min(share, 4), color=MET if row.met else MISSED, height=0.7)
        label = f" {short(ours.median)}{unit}, goal {row.goal}{unit}"
        axes.text(min(share, 4), at, label, va="center", fontsize=7.5)
    _dress(axes, rows, "share of what the goal allows", 1.0)


def _dress(axes: Axes, rows: list[Row], title: str, line: float) -> None:
    axes.set_yticks(range(len(rows)), [f"{row.number or ''}  {row.what}" for row in rows])
    axes.axvline(line, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_title(title, loc="left", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25, y=0.01)
    axes.set_xlim(left=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
