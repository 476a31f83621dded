"""Who gets the next slot: plain and async runs together."""

from __future__ import annotations

import asyncio
import gc
from threading import Lock
from time import monotonic
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from sa_durable.runtime.execution.dispatcher import MAX_WAIT_S, Dispatcher
from sa_durable.runtime.runs.active import ActiveRun
from sa_durable.runtime.runs.capacity import Capacity
from sa_durable.runtime.threads.wakeup import Wakeup
from tests.runtime import app
from tests.runtime.conftest import working
from tests.waiting import wait_until


class Hall:
    """An intake of runs called "plain..." and "async...", and what it did with them."""

    def __init__(self, concurrency: int, prefetch: int | None = 10) -> None:
        self.slots = Capacity(concurrency, prefetch)
        self.started: list[str] = []
        self.released: list[str] = []
        self.posted = 0
        self.intake = Dispatcher(
            self.slots,
            start=lambda run, _: self.started.append(run.name),
            is_sync=lambda run: run.name.startswith("plain"),
            release=lambda run: self.released.append(run.name),
            loop=self,  # type: ignore[arg-type]  # what the dispatcher needs of a loop
            tasks_ready=Wakeup(),
        )

    def post(self, call: Any) -> None:
        assert call == self.intake.dispatch
        self.posted += 1

    def accept(self, *names: str) -> list[Any]:
        runs = [SimpleNamespace(name=name, started=0.0) for name in names]
        self.slots.reserve(len(runs))
        self.intake.accept(runs)  # type: ignore[arg-type]  # what it needs of a run
        return runs


def test_thread_continues_with_the_next_sync_run_in_order():
    hall = Hall(1)
    first, second, third = hall.accept("plain 1", "plain 2", "async 3")
    assert hall.started == ["plain 1"]
    assert hall.intake.next_sync(first) is second
    assert hall.posted == 0
    assert hall.intake.next_sync(second) is None, "the next one is the loop's"
    assert hall.posted == 1
    hall.intake.dispatch()
    assert hall.started == ["plain 1", "async 3"]
    hall.intake.ended(third)
    assert (hall.slots.held, hall.slots.running) == (0, 0)


def test_no_more_runs_than_slots():
    hall = Hall(2)
    first, second, *_ = hall.accept("plain 1", "async 2", "plain 3", "plain 4", "plain 5")
    assert hall.started == ["plain 1", "async 2"]
    third = hall.intake.next_sync(first)
    assert third is not None and third.name == "plain 3" and hall.slots.running == 2  # type: ignore[attr-defined]  # its runs are named here
    hall.intake.ended(second)
    assert hall.started == ["plain 1", "async 2", "plain 4"] and hall.slots.running == 2


@pytest.mark.parametrize("stopped", [True, False])
def test_what_waits_when_it_stops_or_has_waited_too_long_is_given_back(stopped):
    hall = Hall(1, prefetch=None)
    first, second, third = hall.accept("plain 1", "plain 2", "async 3")
    if stopped:
        hall.intake.stop()
    else:
        second.started = monotonic() - 2 * MAX_WAIT_S
        hall.intake.release_stale()
    assert hall.released == ["plain 2", "async 3"]
    assert (hall.slots.held, hall.slots.running) == (1, 1)
    assert hall.intake.next_sync(first) is None
    assert third not in hall.started and hall.slots.held == 0


@pytest.mark.parametrize(
    "call", [app.double.call(number=1), app.triple.call(number=1)], ids=["async", "plain"]
)
def test_run_is_freed_without_the_garbage_collector(engine, shop, call):
    def left() -> list[UUID]:
        runs = [one for one in gc.get_objects() if type(one) is ActiveRun]
        return [run.claim.task_id for run in runs if run.claim.task_id in tasks]

    gc.disable()
    try:
        tasks = {shop.spawn(call) for _ in range(20)}
        with working(engine):
            shop.ended(*tasks)
            wait_until(lambda: not left(), what="the runs to be gone")
    finally:
        gc.enable()


def test_concurrency_counts_sync_and_async_handlers_together(engine, shop, monkeypatch):
    at_once, most, lock = [0], [0], Lock()

    def come(by: int) -> None:
        with lock:
            at_once[0] += by
            most[0] = max(most[0], at_once[0])

    def plain(_: object, number: int) -> int:
        come(1)
        come(-1)
        return 3 * number

    async def on_the_loop(_: object, number: int) -> int:
        come(1)
        await asyncio.sleep(0)
        come(-1)
        return 2 * number

    monkeypatch.setattr(app.triple, "fn", plain)
    monkeypatch.setattr(app.double, "fn", on_the_loop)
    calls = [app.triple.call(number=i) if i % 3 else app.double.call(number=i) for i in range(90)]
    tasks = [shop.spawn(call) for call in calls]
    with working(engine, concurrency=4):
        results = [task.result for task in shop.ended(*tasks)]
    assert results == [3 * i if i % 3 else 2 * i for i in range(90)]
    assert 1 < most[0] <= 4
    assert {task.attempt for task in shop.ended(*tasks)} == {1}
