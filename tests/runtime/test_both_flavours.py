"""B8 to B13, B23, B27 and B28 through a worker, for plain and for async handlers."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.runtime import audit_app
from tests.runtime.audit_app import Entry, LedgerTask
from tests.runtime.conftest import working
from tests.runtime.flavours import now, perform
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
flavours = pytest.mark.parametrize("handler", [audit_app.free, audit_app.afree], ids=["plain", "async"])
every_flavour = pytest.mark.parametrize(
    "handler",
    [audit_app.free, audit_app.afree, audit_app.free_whole, audit_app.afree_whole],
    ids=["plain", "async", "whole", "async whole"],
)


def count(books, what: Any) -> int:
    with Session(books.engine) as session:
        return session.scalar(select(func.count()).select_from(what))


class Gate:
    """Holds a handler until a test opens it, without holding the event loop."""

    def __init__(self) -> None:
        self.reached, self.open = Event(), Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(60)

    async def awaited(self) -> None:
        await asyncio.to_thread(self)


def fails_once(ctx: Any) -> None:
    if ctx.attempt == 1:
        raise ValueError("once more")


# B8, B9: two workers, the first of which doesn't know that it was taken for dead
@flavours
@pytest.mark.parametrize("verb", ["step", "transaction"])
def test_the_first_attempts_late_write_is_rejected_once_a_second_has_begun(books, monkeypatch, handler, verb):
    gate = Gate()

    def write(session: Session, ctx: Any) -> str:
        audit_app.write(session, ctx.task_id, ctx.attempt, "")
        if ctx.attempt == 1:
            gate()
        return f"attempt {ctx.attempt}"

    async def scenario(ctx: Any) -> str:
        if verb == "transaction":
            return await now(ctx.transaction("k", write, ctx))
        if ctx.attempt > 1:
            return await now(ctx.step("k", lambda: f"attempt {ctx.attempt}"))
        hold = gate.awaited if handler.is_async else gate
        return await now(ctx.step("k", hold))

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask) as frozen:
        assert gate.reached.wait(60)
        for chore in (frozen.parts.heartbeat.thread, frozen.parts.claimer.thread):
            chore.stop()
            chore.join(60)
        books.set(task, lease_expires_at=func.now() - timedelta(minutes=5))
        with working(books.engine, LedgerTask, sweep_interval=timedelta(seconds=0.1)):
            assert books.ended(task).result == "attempt 2"
        gate.open.set()
        wait_until(lambda: not len(frozen.parts.active))
    [run] = books.runs(task)
    assert (run.attempt, run.error["type"], run.worker) == (1, "LeaseExpired", frozen.worker_id)
    after = books.task(task)
    assert (after.result, after.token, books.steps(task)) == ("attempt 2", 3, {"k": "attempt 2"})
    with Session(books.engine) as session:
        assert list(session.scalars(select(Entry.attempt))) == ([2] if verb == "transaction" else [])


# B10, B11, B12
@flavours
def test_what_is_saved_is_what_a_handler_sees_and_what_raised_is_not_saved(books, monkeypatch, handler):
    ran: Counter[str] = Counter()
    seen = []

    def run(name: str, value: Any = None) -> Any:
        ran[name] += 1
        return value

    def raises_once() -> str:
        run("raises")
        if ran["raises"] == 1:
            raise ValueError("not saved")
        return "fine"

    async def scenario(ctx: Any) -> None:
        values = [
            await now(ctx.step("k", run, "k", (1, (2, "x")))),
            await now(ctx.step("k", run, "k#2")),
            await now(ctx.step("k", run, "k#3", {"a": None})),
        ]
        seen.append(values)
        await now(ctx.step("raises", raises_once))

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask):
        books.ended(task)
    assert seen == 2 * [[[1, [2, "x"]], None, {"a": None}]]
    assert ran == {"k": 1, "k#2": 1, "k#3": 1, "raises": 2}
    assert list(books.steps(task)) == ["k", "k#2", "k#3", "raises"]


# B13
@flavours
@pytest.mark.owner
def test_two_sleeps_keep_their_own_times_and_none_is_slept_twice(books, monkeypatch, handler):
    runs = []

    async def scenario(ctx: Any) -> list[Any]:
        runs.append((ctx.run_id, ctx.attempt))
        await now(ctx.sleep_for(timedelta(minutes=5)))
        await now(ctx.sleep_for(timedelta(minutes=7)))
        return [ctx.attempt]

    task = books.spawn(perform(monkeypatch, handler, scenario))
    times = []
    with working(books.engine, LedgerTask):
        for number in (1, 2):
            # In this order: else its state may be from before it woke.
            wait_until(lambda: len(runs) == number and books.task(task).state == "sleeping")  # noqa: B023 - called before the loop goes on
            times.append(books.task(task).available_at)
            past = func.now() - HOUR
            with Session(books.engine) as session, session.begin():
                saved = LedgerTask.Checkpoint
                session.execute(update(saved).values(value=func.to_jsonb(past)))
            books.set(task, available_at=past)
        assert books.ended(task).result == [1]
    assert len(runs) == 3 and len(set(runs)) == 1 and books.runs(task) == []
    assert times[1] - times[0] >= timedelta(minutes=2)
    assert all(datetime.fromisoformat(wake) < times[0] for wake in books.steps(task).values())


# B23
@flavours
def test_a_freed_slot_refills_at_once_and_no_more_run_than_may(books, monkeypatch, handler):
    gate, inside, most = Gate(), [], []

    async def scenario(ctx: Any) -> None:
        inside.append(ctx.task_id)
        most.append(len(inside))
        if not gate.reached.is_set():
            await now((gate.awaited if handler.is_async else gate)())
        inside.remove(ctx.task_id)

    call = perform(monkeypatch, handler, scenario)
    slow = books.spawn(call)
    with working(books.engine, LedgerTask, concurrency=2, poll_interval=timedelta(minutes=1)) as worker:
        assert gate.reached.wait(60)
        quick = [books.spawn(call) for _ in range(20)]
        worker.parts.tasks_ready.set()
        assert {task.state for task in books.ended(*quick)} == {"completed"}  # in one slot, without a poll
        assert books.task(slow).state == "running" and max(most) == 2
        gate.open.set()
        books.ended(slow)


# B27
@every_flavour
@pytest.mark.parametrize(
    "value",
    [float("inf"), "\0", {1: 2}, b"bytes", 10**5000, object()],
    ids=["infinity", "nul", "keys", "bytes", "digits", "object"],
)
def test_a_result_that_json_cannot_store_ends_the_task(books, monkeypatch, handler, value):
    ran = []

    async def scenario(ctx: Any) -> Any:
        ran.append(ctx.attempt)
        return value

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask):
        failed = books.ended(task)
    assert (failed.state, failed.error["type"], ran) == ("failed", "InvalidResult", [1])
    assert f"result of {handler.name}" in failed.error["message"]


# B27
@flavours
def test_a_steps_value_that_json_cannot_store_ends_the_task(books, monkeypatch, handler):
    async def scenario(ctx: Any) -> None:
        await now(ctx.step("odd", lambda: {1: float("nan")}))

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask):
        failed = books.ended(task)
    assert (failed.state, failed.attempt, failed.error["type"]) == ("failed", 1, "InvalidResult")
    assert "step 'odd'" in failed.error["message"] and books.steps(task) == {}


# B28


async def sleeps(books: Any, ctx: Any) -> None:
    await now(ctx.sleep_for(HOUR))


async def is_cancelled(books: Any, ctx: Any) -> None:
    with Session(books.engine) as session, session.begin():
        Durable(session).cancel(LedgerTask, ctx.task_id)
    await now(ctx.step("late", int))


async def is_taken(books: Any, ctx: Any) -> None:
    books.set(ctx.task_id, token=50)
    await now(ctx.step("late", int))


ENDS = {
    "Suspend": (sleeps, "sleeping"),
    "Cancelled": (is_cancelled, "cancelled"),
    "LeaseLost": (is_taken, "running"),
}
ends = pytest.mark.parametrize("signal", ENDS)


@flavours
@ends
def test_except_exception_does_not_catch_control_flow(books, monkeypatch, handler, signal):
    end, state = ENDS[signal]
    begun, went_on = [], []

    async def scenario(ctx: Any) -> str:
        begun.append(ctx)
        try:
            await end(books, ctx)
        except Exception:
            went_on.append("caught")
        went_on.append("after")
        return "as if nothing had happened"

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask) as worker:
        wait_until(lambda: begun and not len(worker.parts.active))
    assert went_on == [] and books.task(task).state == state and books.task(task).result is None


@flavours
@ends
def test_writes_after_a_swallowed_signal_are_dropped(books, monkeypatch, handler, signal):
    end, state = ENDS[signal]
    caught = []

    async def scenario(ctx: Any) -> str:
        try:
            await end(books, ctx)
        except BaseException as error:
            caught.append(type(error).__name__)
        for verb in (
            lambda: ctx.step("more", int),
            lambda: ctx.transaction("rows", audit_app.write, ctx.task_id, 1, ""),
            lambda: ctx.sleep_for(HOUR),
            lambda: ctx.spawn(audit_app.close_books.call()),
            lambda: ctx.emit_event("paid"),
            lambda: ctx.await_event("paid"),
        ):
            try:
                await now(verb())
            except BaseException as error:
                caught.append(type(error).__name__)
        caught.append("end")
        return "as if nothing had happened"

    task = books.spawn(perform(monkeypatch, handler, scenario))
    with working(books.engine, LedgerTask) as worker:
        wait_until(lambda: caught[-1:] == ["end"] and not len(worker.parts.active))
    # An async handler may hear of it first as asyncio says it.
    assert caught[0] in (signal, "CancelledError") and caught[1:] == 6 * [signal] + ["end"]
    after = books.task(task)
    assert (after.state, after.result) == (state, None)
    assert list(books.steps(task)) == (["$sleep"] if signal == "Suspend" else [])
    assert count(books, LedgerTask) == 1 and count(books, Entry) == count(books, LedgerTask.Event) == 0
