"""Sides of a comparison, measured in alternation, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WARM_UP = 10  # a tenth of a round
LONGEST = 4.0  # seconds of a round, after which no more blocks begin: on a busy machine the suite ends, too


@dataclass(frozen=True)
class Prepared:
    """A run with something to do before each block, which isn't measured."""

    prepare: Callable[[], object]
    run: Callable[[], object]


Run = Callable[[], object] | Prepared


def rates(
    sides: Sequence[Run],
    *,
    rounds: int,
    blocks: int = 1,
    block: int = 1,
    before: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Operations a second of each side, in each round. A round runs `blocks` blocks of `block` operations of each
    side, in turn: a, b, b, a, ... or fewer, if that takes LONGEST. A tenth of a round, at least a block, is run once
    more, to warm up."""
    measured: list[list[float]] = [[] for _ in sides]
    for round_ in range(rounds + 1):
        before()
        count = blocks if round_ else -(-blocks // WARM_UP)
        spent, done = [0.0] * len(sides), 0
        for i in range(round_, round_ + count):
            if sum(spent) > LONGEST:
                break
            done += 1
            for which in range(len(sides)) if i % 2 else reversed(range(len(sides))):
                spent[which] += seconds(sides[which])
        if round_:
            for of_side, took in zip(measured, spent, strict=True):
                of_side.append(done * block / took)
    return measured


def seconds(run: Run) -> float:
    if isinstance(run, Prepared):
        run.prepare()
        run = run.run
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
