"""What a workload yields: figures beside their limit, round by round, and the goal that they are held to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Goal:
    """A bound for the ratio of ours to the limit, or for our figure itself."""

    of: Literal["ratio", "ours"]
    least: bool  # or most
    bound: float

    def met(self, figure: Figure) -> bool:
        value = figure.ratio.median if self.of == "ratio" and figure.ratio else figure.ours.median
        return value >= self.bound if self.least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g}"


def ratio_at_least(bound: float) -> Goal:
    return Goal("ratio", True, bound)


def ratio_at_most(bound: float) -> Goal:
    return Goal("ratio", False, bound)


def at_most(bound: float) -> Goal:
    """In the figure's unit."""
    return Goal("ours", False, bound)


def at_least(bound: float) -> Goal:
    """In the figure's unit."""
    return Goal("ours", True, bound)


@dataclass(frozen=True)
class Spread:
    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figure:
    """One thing measured in each of some rounds: ours, and the limit of the same round where there is one.

    `name` tells the figures of one workload apart, and its goals name it.
    """

    unit: str
    ours: Spread
    limit: Spread | None = None
    ratio: Spread | None = None  # ours / limit, of the rounds
    name: str = ""


def figure(unit: str, ours: Sequence[float], limit: Sequence[float] = (), *, name: str = "") -> Figure:
    """The figure of these rounds. Without a limit it is a report."""
    if not limit:
        return Figure(unit, spread(ours), name=name)
    ratios = [o / of for o, of in zip(ours, limit, strict=True)]
    return Figure(unit, spread(ours), spread(limit), spread(ratios), name)


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
