"""B6 and B7, through workers: deadlines fire whoever claims, and a cancelled run notices at whatever it does next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Cancellation, Durable, Fixed
from sa_durable.runtime import AsyncTaskContext, TaskContext
from sa_durable.testing import queue_factory
from tests.runtime import app
from tests.runtime.app import NOW, WorkTask
from tests.runtime.conftest import working
from tests.waiting import wait_until

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
LIMITS = Cancellation(start_within=HOUR, max_duration=HOUR)
OFTEN = {"sweep_interval": timedelta(seconds=0.05)}


# B6


def test_failure_after_max_duration_cancels_the_task(engine, shop):
    ninety = Cancellation(max_duration=timedelta(seconds=90))
    task = shop.spawn(
        app.hopeless.call(), cancellation=ninety, retry=Fixed(60 * SECOND, jitter=0), max_attempts=9
    )
    with working(engine):
        shop.state_is(task, "sleeping")
        shop.set(task, available_at=func.now())
        wait_until(lambda: len(shop.runs(task)) == 2 and shop.task(task).state == "sleeping")
        shop.set(task, available_at=func.now() - SECOND, cancel_at=func.now() - SECOND)  # at +91 s
        over = shop.ended(task)
    assert (over.state, over.attempt, len(shop.runs(task))) == ("cancelled", 3, 2)
    assert over.started_at is None  # its third attempt: nobody has begun it


def test_task_not_started_in_time_is_cancelled_without_its_handler(engine, shop):
    busy = shop.spawn(app.waits.call(label="busy"))
    task = shop.spawn(app.quick.call(label="late"), cancellation=LIMITS)
    with working(engine, concurrency=1, prefetch=0, **OFTEN):
        wait_until(lambda: app.calls["busy"])
        shop.set(task, cancel_at=func.now() - SECOND)
        assert shop.ended(task).state == "cancelled"
        app.gate.set()
        assert shop.ended(busy).result == "busy"
    assert app.calls["late"] == 0 and shop.task(task).error["type"] == "DeadlineExceeded"


@pytest.mark.parametrize("why", ["paused", "unknown"])
@pytest.mark.owner
def test_deadlines_fire_without_a_claim(engine, shop, why):
    with Session(engine) as session, session.begin():
        if why == "paused":
            queue_factory(WorkTask, session)(paused=True)
        name = "double" if why == "paused" else "of another release"
        spawn, front = Durable(session).spawn, {"cancellation": LIMITS, "priority": -9}
        number = 150  # more than a batch
        tasks = [spawn(WorkTask, name, {"number": n}, **front).task_id for n in range(number)]
    with working(engine, **OFTEN):
        other = shop.spawn(app.double.call(number=1))
        if why == "unknown":
            assert shop.ended(other).result == 2  # they don't block a claim
        for task in tasks:
            shop.set(task, cancel_at=func.now() - SECOND)
        assert {task.state for task in shop.ended(*tasks)} == {"cancelled"}
        assert shop.task(other).state == ("pending" if why == "paused" else "completed")


def test_a_deadline_fires_when_it_is_due_and_not_when_a_sweep_is(engine, shop):
    task = shop.spawn(
        app.naps.call(seconds=3600), cancellation=Cancellation(max_duration=timedelta(seconds=0.3))
    )
    with working(engine, sweep_interval=timedelta(seconds=1)):
        over = shop.ended(task)
    assert over.state == "cancelled" and over.finished_at >= over.cancel_at


def test_a_running_handler_whose_time_is_over_is_ended_at_the_heartbeat(engine, shop, quick_beats):
    task = shop.spawn(app.aswallows.call(), cancellation=LIMITS)
    with working(engine, _tuning=quick_beats, **OFTEN):
        wait_until(lambda: app.calls["aswallows"])
        shop.set(task, cancel_at=func.now() - SECOND)
        wait_until(lambda: len(app.seen) == 2)
    assert app.seen == ["CancelledError", "Cancelled"]
    assert [(run.attempt, run.state) for run in shop.runs(task)] == [(1, "cancelled")]


# B7

PLAIN: dict[str, Callable[[TaskContext], Any]] = {
    "step": lambda ctx: ctx.step("late", list),
    "complete_step": lambda ctx: ctx.complete_step(ctx.begin_step("late"), 1),
    "transaction": lambda ctx: ctx.transaction("late", lambda session: session.scalar(select(1))),
    "heartbeat": lambda ctx: ctx.heartbeat(),
    "sleep": lambda ctx: ctx.sleep_for(HOUR),
    "await": lambda ctx: ctx.await_event("late"),
    "emit": lambda ctx: ctx.emit_event("late"),
    "spawn": lambda ctx: ctx.spawn(app.double.call(number=1)),
    "now": lambda ctx: ctx.now(),
    "complete": lambda ctx: "late",
}


@WorkTask.handler(retry=NOW)
def acts(ctx: TaskContext, verb: str) -> None:
    app.calls["inside"] += 1
    app.gate.wait(120)
    if verb == "fail":
        raise ValueError("late")
    try:
        PLAIN[verb](ctx)
    except BaseException as error:
        app.seen.append(type(error).__name__)
        raise


@WorkTask.handler(retry=NOW)
async def aacts(ctx: AsyncTaskContext, verb: str) -> None:
    app.calls["inside"] += 1
    while not app.gate.is_set():  # noqa: ASYNC110 - the gate is of threads
        await asyncio.sleep(0.01)
    if verb == "fail":
        raise ValueError("late")
    try:
        done = PLAIN[verb](ctx)  # type: ignore[arg-type]  # the same vocabulary, awaited
        if isinstance(done, Awaitable):
            await done
    except BaseException as error:
        app.seen.append(type(error).__name__)
        raise


@pytest.mark.parametrize("verb", [*PLAIN, "fail"])
@pytest.mark.parametrize("handler", [acts, aacts])
def test_next_call_of_a_cancelled_run_raises_cancelled(engine, shop, handler, verb):
    task = shop.spawn(handler.call(verb=verb))
    with working(engine, concurrency=1):  # heartbeats come every 15 seconds: they don't tell it
        wait_until(lambda: app.calls["inside"])
        with Session(engine) as session, session.begin():
            assert Durable(session).cancel(WorkTask, task)
        before = shop.task(task)
        app.gate.set()
        if verb not in ("complete", "fail"):
            wait_until(lambda: app.seen)
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6
    # An async handler is cancelled where it awaits, so that whatever it awaits together is.
    raised = "Cancelled" if handler is acts else "CancelledError"
    assert app.seen == ([] if verb in ("complete", "fail") else [raised])
    after = shop.task(task)
    assert (after.state, after.token, after.finished_at) == ("cancelled", before.token, before.finished_at)
    assert (after.result, shop.steps(task), app.calls["inside"]) == (None, {}, 1)
    assert [(run.attempt, run.state) for run in shop.runs(task)] == [(1, "cancelled")]
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(WorkTask.Event)) == 0
        assert session.scalar(select(func.count()).select_from(WorkTask.Wait)) == 0
        assert session.scalar(select(func.count()).select_from(WorkTask)) == 2  # no child


def test_a_sleeping_task_that_is_cancelled_is_never_resumed(engine, shop):
    task = shop.spawn(app.naps.call(seconds=3600))
    with working(engine):
        shop.state_is(task, "sleeping")
        with Session(engine) as session, session.begin():
            assert Durable(session).cancel(WorkTask, task)
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6
    assert shop.task(task).state == "cancelled" and app.calls["naps"] == 1
