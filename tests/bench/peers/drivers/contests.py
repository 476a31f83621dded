"""Workloads that go through many small rounds: the pick-up by an idle worker, and racing for a key."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from threading import Event
from typing import Any

from speak import Answer, Order, latencies

COLD = 3
PATIENCE = 30.0
UNEVEN = 0.5, 1.5  # of a pause: at random, so that nobody's polling keeps step with it


class Arrival:
    """When a handler started."""

    def __init__(self) -> None:
        self._there = Event()
        self._told: Callable[[], None] = self._there.set
        self._at = 0.0

    def reached(self, _: object = None) -> None:
        """In the handler."""
        self._at = time.perf_counter()
        self._told()

    def pick_up(self, order: Order, spawn: Callable[[], object]) -> Answer:
        """From before the call that spawns and commits until the handler starts; in a thread that isn't the worker's.
        The first ones, which find the worker and its connections cold, don't count."""
        spent = []
        for _ in range(COLD + order.number):
            time.sleep(order.pause * random.uniform(*UNEVEN))
            self._there.clear()
            began = time.perf_counter()
            spawn()
            assert self._there.wait(PATIENCE), "nobody picked it up"
            spent.append(self._at - began)
        return latencies(spent[COLD:])

    async def pick_up_async(self, order: Order, spawn: Callable[[], Awaitable[object]]) -> Answer:
        """The same, for clients that live on the worker's loop."""
        there = asyncio.Event()
        self._told = there.set
        spent = []
        for _ in range(COLD + order.number):
            await asyncio.sleep(order.pause * random.uniform(*UNEVEN))
            there.clear()
            began = time.perf_counter()
            await spawn()
            await asyncio.wait_for(there.wait(), PATIENCE)
            spent.append(self._at - began)
        return latencies(spent[COLD:])


RACERS = 16


async def race(number: int, racers: list[Callable[[str], Awaitable[Any]]], prefix: str) -> Answer:
    """All racers spawn the same new key at once, each on a connection of its own: from the start until all know."""
    assert len(racers) == RACERS
    spent = []
    for i in range(COLD + number):
        began = time.perf_counter()
        await asyncio.gather(*(racer(f"{prefix}{i}") for racer in racers))
        spent.append(time.perf_counter() - began)
    return latencies(spent[COLD:])


def raced(number: int) -> int:
    """How many tasks there are after so many rounds that count: one each."""
    return COLD + number
