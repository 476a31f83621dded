"""Measuring in rounds: in each, every contender does every workload, workload by workload, and in turn."""

from __future__ import annotations

import fcntl
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.peers.contenders import Driver, DriverFailed
from tests.bench.peers.workloads import SECONDS, Workload

WARM_UP = 20  # a twentieth of a round, or the least
LEAST = 5  # operations, at the smallest scale
MINUTES = 2.5


@dataclass
class Side:
    """What a contender did of a workload: of each round its figure, which is the median where these are latencies."""

    number: int = 0  # of operations in a round
    values: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)  # of all rounds
    error: str = ""

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        """Those of a round."""
        if "milliseconds" in answers[0]:
            spent = [each for answer in answers for each in answer["milliseconds"]]
            self.values.append(statistics.median(spent))
            self.latencies += spent
        else:
            self.values.append(sum(a["number"] for a in answers) / sum(a["seconds"] for a in answers))


Measured = dict[str, dict[str, Side]]  # by workload, by contender


def measured(
    drivers: Sequence[Driver],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    scale: float,
    lock: Lock | None,
    say: Callable[[str], None],
) -> Measured:
    """Round 0 warms up, and finds out how many operations a contender does in `SECONDS`. In a round, a workload may be
    done in several slices. Who goes first changes. Who fails is out of that workload, and the others go on."""
    sides: Measured = {
        workload.name: {d.contender.name: Side() for d in drivers if workload.order in d.workloads}
        for workload in workloads
    }
    for round_ in range(rounds + 1):
        for workload in workloads:
            if lock:
                lock.ours()
            able = [d for d in drivers if d.contender.name in sides[workload.name]]
            if not able:
                continue
            _round(able, workload, sides[workload.name], round_, scale)
            say(f"round {round_}/{rounds}  {workload.name}: {_short(sides[workload.name])}")
    return sides


def _round(
    drivers: Sequence[Driver], workload: Workload, sides: dict[str, Side], round_: int, scale: float
) -> None:
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    slices = workload.slices if round_ else 1
    for slice_ in range(slices):
        for driver in turn(drivers, round_ + slice_):
            name = driver.contender.name
            if sides[name].error:
                continue
            number = -(-sides[name].number // slices) if round_ else _at_first(workload, scale)
            try:
                answers[name].append(
                    driver.ask(workload.order, number, concurrency=workload.concurrency, pause=workload.pause)
                )
            except DriverFailed as failed:
                sides[name].error = str(failed)
    for name, side in sides.items():
        if round_ and not side.error:
            side.add(answers[name])
        elif not side.error:
            side.number = _number(workload, answers[name][0], scale)


def _at_first(workload: Workload, scale: float) -> int:
    """Enough to warm up with."""
    return max(LEAST, int(scale * min(workload.number // WARM_UP, workload.least)))


def _number(workload: Workload, answer: dict[str, Any], scale: float) -> int:
    """Of operations in a round: those who are slower than that of the workload do as many as fill `SECONDS`."""
    most, least = (max(LEAST, int(bound * scale)) for bound in (workload.number, workload.least))
    if "milliseconds" in answer:
        return most
    return max(least, min(most, int(answer["number"] / answer["seconds"] * SECONDS * scale)))


def turn(drivers: Sequence[Driver], round_: int) -> Iterator[Driver]:
    """Forwards and backwards, each time beginning with another."""
    first = round_ // 2 % len(drivers)
    order = [*drivers[first:], *drivers[:first]]
    return iter(order if round_ % 2 else order[::-1])


def _short(sides: dict[str, Side]) -> str:
    return ", ".join(
        f"{name} {'failed' if side.error else f'{side.values[-1]:,.4g}' if side.values else side.number}"
        for name, side in sides.items()
    )


class Lock:
    """A file lock, as flock(1) has it, for a machine where several measure: held at most for about `MINUTES`, and then
    the others' turn comes between two workloads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a")
        self._since: float | None = None

    def ours(self) -> None:
        if self._since is not None and time.monotonic() - self._since > 60 * MINUTES:
            self.release()
        if self._since is None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._since = None
