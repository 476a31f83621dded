"""What a run came to, as a line of a table and as JSON."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.checker import (
    DEADLOCK,
    DUPLICATE,
    LATE,
    LOST_EFFECT,
    LOST_SPAWN,
    NOT_ENDED,
    TWO_TASKS,
    Finding,
)

LOSSES, DOUBLES = (LOST_SPAWN, NOT_ENDED, LOST_EFFECT), (TWO_TASKS, DUPLICATE, LATE)

BUSY = 2  # times as many processes as processors want to run: then it is the machine that is measured


@dataclass
class Figures:
    """`recoveries`: seconds from each fault until what it had struck went on, but for those that the machine itself
    `stood_still`; `bound`: what they may be."""

    case: str
    seed: str
    faults: int = 0
    tasks: int = 0
    acks: int = 0
    effects: int = 0
    seconds: float = 0.0
    recoveries: list[float] = field(default_factory=list)
    bound: float | None = None
    stood_still: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def check_recovery(self, bound: float, *, longest: float | None = None) -> None:
        """All went on within `bound`; where many others are at work on this machine, most did, and that is noted."""
        self.bound = round(bound, 2)
        if self.stood_still:
            self.notes["the machine stood still, within a recovery, for (s)"] = round(self.stood_still, 2)
        assert statistics.median(self.recoveries) <= bound, self.recoveries
        if (load := os.getloadavg()[0]) > BUSY * (os.cpu_count() or 1):
            self.notes["the longest recovery was not judged: load average"] = round(load, 1)
        else:
            assert max(self.recoveries) <= (longest or bound), self.recoveries

    def _sum(self, rules: Sequence[str]) -> int:
        return sum(finding.count for finding in self.findings if finding.rule in rules)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        values["findings"] = [str(finding) for finding in self.findings]
        del values["recoveries"]
        recovered = sorted(self.recoveries)
        return {
            **values,
            "lost": self._sum(LOSSES),
            "duplicated": self._sum(DOUBLES),
            "deadlocks": self._sum((DEADLOCK,)),
            "recovery_median": round(statistics.median(recovered), 3) if recovered else None,
            "recovery_longest": round(recovered[-1], 3) if recovered else None,
        }


COLUMNS = ("case", "faults", "tasks", "acks", "effects", "lost", "duplicated", "deadlocks", "recovery_median",
           "recovery_longest", "bound", "seconds")  # fmt: skip


def table(all_figures: Sequence[Figures]) -> list[str]:
    """The lines of the table, each with its notes under it."""
    rows = [figures.to_json() for figures in all_figures]
    cells = [[_cell(row[column]) for column in COLUMNS] for row in rows]
    heads = [column.replace("recovery_", "") for column in COLUMNS]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = []
    for number, line in enumerate([heads, *cells]):
        first, *rest = (
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join((first, *rest)))
        if number:
            lines += [f"    {name}: {value}" for name, value in rows[number - 1]["notes"].items()]
            lines += [f"    FOUND {finding}" for finding in rows[number - 1]["findings"]]
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_json(path: Path, all_figures: Sequence[Figures]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figures.to_json() for figures in all_figures], indent=2) + "\n")
