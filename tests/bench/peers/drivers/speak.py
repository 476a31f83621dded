"""What a driver says to the coordinator: JSON lines, one order, one answer, in turn. Standard library only.

    <- {"workload": "drain", "number": 2000, "concurrency": 10}
    -> {"seconds": 0.41, "number": 2000}

A driver holds no connection and runs no worker between two orders, so that it costs the others nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from time import perf_counter
from typing import Any, Self


@dataclass(frozen=True)
class Order:
    number: int  # of operations
    concurrency: int | None = None  # of a drain; None: whatever drains fastest
    pause: float = 0.0  # seconds between two pick-ups, on average


Answer = dict[str, Any]
Workload = Callable[[Order], Any]  # returns an Answer, or awaits one


class Stopwatch:
    """`with Stopwatch() as watch: ...`, then `watch.seconds`."""

    def __enter__(self) -> Self:
        self._began = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._began

    def answer(self, number: int) -> Answer:
        return {"seconds": self.seconds, "number": number}


@dataclass
class Hook:
    """What a handler calls, which is defined once for all orders."""

    call: Callable[[Any], object] = print


def latencies(seconds: list[float]) -> Answer:
    return {"milliseconds": [1000 * each for each in seconds], "number": len(seconds)}


async def timed(act: Callable[[int, int], Awaitable[object]], number: int, warm_up: int) -> Answer:
    """Time `act(number, offset)`, after one with `warm_up` operations that don't count."""
    await act(warm_up, number)
    with Stopwatch() as watch:
        await act(number, 0)
    return watch.answer(number)


def timed_sync(act: Callable[[int, int], object], number: int, warm_up: int) -> Answer:
    """As `timed`, for clients without an event loop."""
    act(warm_up, number)
    with Stopwatch() as watch:
        act(number, 0)
    return watch.answer(number)


async def repeated(act: Callable[[], Awaitable[object]], number: int, warm_up: int = 20) -> Answer:
    """Time so many calls of `act`."""

    async def several(count: int, _offset: int) -> None:
        for _ in range(count):
            await act()

    return await timed(several, number, warm_up)


def repeated_sync(act: Callable[[], object], number: int, warm_up: int = 20) -> Answer:
    def several(count: int, _offset: int) -> None:
        for _ in range(count):
            act()

    return timed_sync(several, number, warm_up)


def workloads(
    spawning: Callable[..., Any],
    duplicate: Workload,
    bulk: Callable[..., Any],
    drain: Workload,
    pick_up: Workload,
    racing: Workload,
    steps: Workload | None = None,
) -> dict[str, Workload]:
    """Return the workloads by the names that orders have for them. Not all peers have steps."""
    named = {
        "spawn": partial(spawning, keyed=False),
        "spawn keyed": partial(spawning, keyed=True),
        "spawn in a transaction": partial(spawning, keyed=True, transactions=True),
        "duplicate": duplicate,
        "bulk": partial(bulk, keyed=False),
        "bulk keyed": partial(bulk, keyed=True),
        "drain": drain,
        "pick-up": pick_up,
        "race": racing,
    }
    return named if steps is None else {**named, "steps": steps}


def serve(
    offered: Mapping[str, Workload],
    *,
    packages: list[str],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Answer orders until the input ends. Each async workload gets an event loop of its own."""
    mouth = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes with the errors
    about = {"workloads": sorted(offered), "versions": {name: version(name) for name in packages}}
    print(json.dumps(about), file=mouth)
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the coordinator was killed while it wrote the order
        order = json.loads(line)
        workload = offered[order.pop("workload")]
        try:
            answer = workload(Order(**order))
            if inspect.iscoroutine(answer):
                with asyncio.Runner(loop_factory=loop_factory) as runner:
                    answer = runner.run(answer)
        except Exception:  # the coordinator reports it and goes on with the others
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=mouth)
