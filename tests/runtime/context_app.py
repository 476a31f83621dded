"""The application of test_failures.py and test_context.py: handlers that fail, and those that use the smaller verbs.

Each comes twice, plain and async (named with an `a`): BOTH are what the tests run.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import (
    AsyncTaskContext,
    DeclarationError,
    DurableTask,
    Fail,
    Fixed,
    InvalidResult,
    NoContext,
    Step,
    StepMisuse,
    TaskContext,
    current_context,
)
from tests.apps import NOW, NoteColumns, fail_first_attempt
from tests.runtime.app import Calls


class Base(DeclarativeBase):
    pass


class Audit(NoteColumns, Base):
    __tablename__ = "audit"


class CardDeclined(Exception):
    """An error of the application's own, as it would write one."""

    __durable_fields__ = ("code", "amount")

    def __init__(self, code: str, amount: Decimal, secret: str = "4242") -> None:
        super().__init__(f"declined: {code}")
        self.code, self.amount, self.secret = code, amount, secret


class Misdeclared(Exception):
    """Its author took __durable_fields__ for a switch."""

    __durable_fields__: ClassVar[Any] = True


class Closed(Exception):
    pass


class VerbTask(DurableTask, Base):
    __queue__ = "verbs"
    __spawn_defaults__: ClassVar = {"retry": NOW}
    __run_defaults__: ClassVar = {"non_retryable": Closed}


calls: Counter[str] = Calls()  # what ran in this process
seen: list[Any] = []
gate = threading.Event()  # closed until a test opens it


def reset() -> None:
    calls.clear()
    seen.clear()
    gate.clear()


@dataclass
class Receipt:
    number: int
    total: Decimal


# How a handler fails: its `how` says it, so that every way is tested for both kinds.


def fail(how: str) -> str:
    calls[how] += 1
    match how:
        case "Fail":
            raise Fail("card declined", code="51", amount=Decimal("9.50"))
        case "own":
            raise CardDeclined("51", Decimal("9.50"))
        case "closed":
            raise Closed("for good")
        case "misdeclared":
            raise Misdeclared("what happened")
        case "group":
            raise ExceptionGroup("several", [ValueError("a"), Fail("b", code=7)])
        case _:
            raise ValueError(how)


@VerbTask.handler(max_attempts=2)
def fails(ctx: TaskContext, how: str) -> str:
    return fail(how)


@VerbTask.handler(max_attempts=2)
async def afails(ctx: AsyncTaskContext, how: str) -> str:
    return fail(how)


@VerbTask.handler(non_retryable=(CardDeclined, KeyError))
def picky(ctx: TaskContext, how: str) -> str:
    return fail(how)


@VerbTask.handler(non_retryable=(CardDeclined, KeyError))
async def apicky(ctx: AsyncTaskContext, how: str) -> str:
    return fail(how)


@VerbTask.handler(retry=Fixed(timedelta(hours=1), jitter=0.5))
def fails_apart(ctx: TaskContext) -> None:
    raise ConnectionError


@VerbTask.handler()
def fails_in_step(ctx: TaskContext) -> str:
    return ctx.step("charge", fail, "Fail")


@VerbTask.handler()
async def afails_in_step(ctx: AsyncTaskContext) -> str:
    return await ctx.step("charge", fail, "Fail")


def _book(session: Session) -> str:
    session.add(Audit(what="booked"))
    session.flush()
    return fail("Fail")


async def _abook(session: AsyncSession) -> str:
    session.add(Audit(what="booked"))
    await session.flush()
    return fail("Fail")


@VerbTask.handler()
def fails_in_transaction(ctx: TaskContext) -> str:
    return ctx.transaction("book", _book)


@VerbTask.handler()
async def afails_in_transaction(ctx: AsyncTaskContext) -> str:
    return await ctx.transaction("book", _abook)


@VerbTask.handler(transactional=True)
def fails_transactional(ctx: TaskContext) -> str:
    return _book(ctx.session)


@VerbTask.handler(transactional=True)
async def afails_transactional(ctx: AsyncTaskContext) -> str:
    return await _abook(ctx.session)


@VerbTask.handler()
def parent(ctx: TaskContext, child: str) -> dict[str, Any]:
    try:
        ctx.join(ctx.spawn(VerbTask.__handlers__[child].call(how="Fail")))
    except Exception as error:
        return {"type": type(error).__name__, "fields": dict(error.error.fields)}
    return {}


@VerbTask.handler()
async def aparent(ctx: AsyncTaskContext, child: str) -> dict[str, Any]:
    try:
        await ctx.join(await ctx.spawn(VerbTask.__handlers__[child].call(how="Fail")))
    except Exception as error:
        return {"type": type(error).__name__, "fields": dict(error.error.fields)}
    return {}


@VerbTask.handler()
def raises_what_it_is_given(ctx: TaskContext) -> None:
    raise seen[0]


# Values that are remembered.


@VerbTask.handler()
def draws(ctx: TaskContext) -> list[Any]:
    got = [ctx.now(), ctx.random(), ctx.uuid7(), ctx.now(), ctx.random(), ctx.uuid7()]
    seen.append(got)
    fail_first_attempt(ctx)
    return got


@VerbTask.handler()
async def adraws(ctx: AsyncTaskContext) -> list[Any]:
    got = [
        await ctx.now(),
        await ctx.random(),
        await ctx.uuid7(),
        await ctx.now(),
        await ctx.random(),
        await ctx.uuid7(),
    ]
    seen.append(got)
    fail_first_attempt(ctx)
    return got


@VerbTask.handler(transactional=True)
def draws_transactional(ctx: TaskContext) -> None:
    seen.append([ctx.now(), ctx.random(), ctx.uuid7()])
    ctx.heartbeat()


@VerbTask.handler(transactional=True)
async def adraws_transactional(ctx: AsyncTaskContext) -> None:
    seen.append([await ctx.now(), await ctx.random(), await ctx.uuid7()])
    await ctx.heartbeat()


# Heartbeats, as far below the handler as they are needed.


def _beat_until_the_gate_opens() -> str:
    calls["inside"] += 1
    try:
        while not gate.wait(0.005):
            current_context(TaskContext).heartbeat()
    except BaseException as error:
        seen.append(type(error).__name__)
        raise
    return "done"


@VerbTask.handler()
def beats(ctx: TaskContext) -> str:
    return ctx.step("long", _beat_until_the_gate_opens)


@VerbTask.handler()
async def abeats(ctx: AsyncTaskContext) -> str:
    calls["inside"] += 1
    try:
        while not gate.is_set():
            await ctx.heartbeat()
    except BaseException as error:
        seen.append(type(error).__name__)
        raise
    return "done"


# The current context.

variable: ContextVar[str] = ContextVar("variable", default="unset")


def _is_current(ctx: Any) -> bool:
    try:
        return current_context() is ctx
    except NoContext:
        return False


def _in_own_thread(call: Callable[..., Any], *args: Any) -> Any:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(call(*args)))
    thread.start()
    thread.join()
    return got[0]


@VerbTask.handler()
def looks(ctx: TaskContext) -> dict[str, Any]:
    before = variable.get()
    variable.set("left by looks")
    return {
        "handler": _is_current(ctx),
        "step": ctx.step("look", _is_current, ctx),
        "transaction": ctx.transaction("tlook", lambda session: _is_current(ctx)),
        "thread": _in_own_thread(_is_current, ctx),
        "copied": _in_own_thread(copy_context().run, _is_current, ctx),
        "variable": before,
    }


@VerbTask.handler()
async def alooks(ctx: AsyncTaskContext) -> dict[str, Any]:
    async def look() -> bool:
        return _is_current(ctx)

    async def tlook(session: AsyncSession) -> bool:
        return _is_current(ctx)

    before = variable.get()
    variable.set("left by alooks")
    gathered = await asyncio.gather(look(), asyncio.create_task(look()))
    return {
        "handler": _is_current(ctx),
        "step": await ctx.step("look", look),
        "transaction": await ctx.transaction("tlook", tlook),
        "plain transaction": await ctx.transaction("plain", lambda session: _is_current(ctx)),
        "to_thread": await asyncio.to_thread(_is_current, ctx),
        "gather": all(gathered),
        "thread": _in_own_thread(_is_current, ctx),
        "variable": before,
    }


def _write_below(what: str) -> None:
    current_context(TaskContext).session.add(Audit(what=what))


@VerbTask.handler(transactional=True)
def looks_transactional(ctx: TaskContext) -> bool:
    _write_below("below")
    return _is_current(ctx)


@VerbTask.handler(transactional=True)
async def alooks_transactional(ctx: AsyncTaskContext) -> bool:
    current_context(AsyncTaskContext).session.add(Audit(what="below"))
    return _is_current(ctx)


@VerbTask.handler()
def asks_for_the_other_kind(ctx: TaskContext) -> str:
    try:
        current_context(AsyncTaskContext)
    except NoContext as error:
        return str(error)
    return "it had one"


# Steps that don't fit a callable.

kept: list[Step[Receipt]] = []


@VerbTask.handler()
def begins(ctx: TaskContext) -> list[Any]:
    first, second = ctx.begin_step("pay", returns=Receipt), ctx.begin_step("pay", returns=Receipt)
    untyped = ctx.begin_step("untyped")
    seen.append([first.done, second.done, untyped.done])
    if not first.done:
        assert ctx.complete_step(first, Receipt(7, Decimal("1.50"))) == first.value
        assert ctx.complete_step(untyped, (1, None)) == [1, None]
    fail_first_attempt(ctx)
    ctx.complete_step(second, Receipt(8, Decimal(2)))
    return [str(first.value), str(second.value), untyped.value, second.done]


@VerbTask.handler()
async def abegins(ctx: AsyncTaskContext) -> list[Any]:
    first, second = ctx.begin_step("pay", returns=Receipt), ctx.begin_step("pay", returns=Receipt)
    untyped = ctx.begin_step("untyped")
    seen.append([first.done, second.done, untyped.done])
    if not first.done:
        assert await ctx.complete_step(first, Receipt(7, Decimal("1.50"))) == first.value
        assert await ctx.complete_step(untyped, (1, None)) == [1, None]
    fail_first_attempt(ctx)
    await ctx.complete_step(second, Receipt(8, Decimal(2)))
    return [str(first.value), str(second.value), untyped.value, second.done]


@VerbTask.handler(max_attempts=2)
def misuses(ctx: TaskContext) -> list[int]:
    step = ctx.begin_step("pay", returns=Receipt)
    if ctx.attempt == 1:
        kept[:] = [step, ctx.begin_step("other", returns=Receipt)]
        for attempt in (
            lambda: step.value,
            lambda: ctx.complete_step(step, object()),
            lambda: ctx.begin_step("$pay"),
        ):
            try:
                attempt()
            except Exception as error:
                seen.append(type(error).__name__)
        ctx.complete_step(step, Receipt(7, Decimal(1)))
        raise ValueError("again")
    for misused in (step, kept[0], kept[1]):
        try:
            ctx.complete_step(misused, Receipt(9, Decimal(9)))
        except StepMisuse as error:
            seen.append(str(error))
    return [step.value.number]


@VerbTask.handler(max_attempts=2)
async def amisuses(ctx: AsyncTaskContext) -> list[int]:
    step = ctx.begin_step("pay", returns=Receipt)
    if ctx.attempt == 1:
        kept[:] = [step, ctx.begin_step("other", returns=Receipt)]
        try:
            seen.append(step.value)
        except StepMisuse as error:
            seen.append(type(error).__name__)
        try:
            await ctx.complete_step(step, object())
        except InvalidResult as error:
            seen.append(type(error).__name__)
        try:
            ctx.begin_step("$pay")
        except DeclarationError as error:
            seen.append(type(error).__name__)
        await ctx.complete_step(step, Receipt(7, Decimal(1)))
        raise ValueError("again")
    for misused in (step, kept[0], kept[1]):
        try:
            await ctx.complete_step(misused, Receipt(9, Decimal(9)))
        except StepMisuse as error:
            seen.append(str(error))
    return [step.value.number]


# Timeouts. A machine that is busy may fail any attempt, so there are many: it is the first one that takes too long.

SHORT = timedelta(milliseconds=400)


def _told(error: BaseException) -> None:
    seen.append(f"{type(error).__name__}: {error}")


@VerbTask.handler(timeout=SHORT, max_attempts=None)
def slow(ctx: TaskContext) -> str:
    calls["slow"] += 1
    if ctx.attempt == 1:
        gate.wait(120)
        for late in (lambda: ctx.step("late", lambda: True), ctx.heartbeat) * 2:
            try:
                late()
            except BaseException as error:
                _told(error)
    return f"attempt {ctx.attempt}"


@VerbTask.handler(timeout=SHORT, max_attempts=None)
async def aslow(ctx: AsyncTaskContext) -> str:
    calls["slow"] += 1
    if ctx.attempt == 1:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            for late in (lambda: ctx.step("late", lambda: True), ctx.heartbeat) * 2:
                try:
                    await late()
                except BaseException as error:
                    _told(error)
    return f"attempt {ctx.attempt}"


@VerbTask.handler(timeout=SHORT, max_attempts=1)
async def blocks_the_loop(ctx: AsyncTaskContext) -> str:
    gate.wait(120)
    return "done"


@VerbTask.handler(timeout=SHORT, max_attempts=None, transactional=True)
def slow_transactional(ctx: TaskContext) -> str:
    ctx.session.add(Audit(what=f"attempt {ctx.attempt}"))
    ctx.session.flush()
    if ctx.attempt == 1:
        gate.wait(120)
    return f"attempt {ctx.attempt}"


@VerbTask.handler(timeout=SHORT, max_attempts=None, transactional=True)
async def aslow_transactional(ctx: AsyncTaskContext) -> str:
    ctx.session.add(Audit(what=f"attempt {ctx.attempt}"))
    await ctx.session.flush()
    if ctx.attempt == 1:
        await asyncio.sleep(30)
    return f"attempt {ctx.attempt}"


@VerbTask.handler(timeout=timedelta(seconds=5), max_attempts=1)
def naps(ctx: TaskContext) -> int:
    for _ in range(2):
        ctx.sleep_for(timedelta(seconds=2.6))
    return ctx.attempt


@VerbTask.handler(timeout=timedelta(seconds=5), max_attempts=1)
async def anaps(ctx: AsyncTaskContext) -> int:
    for _ in range(2):
        await ctx.sleep_for(timedelta(seconds=2.6))
    return ctx.attempt


# Handlers that stay where they are until the gate opens.


@VerbTask.handler()
def stays(ctx: TaskContext) -> None:
    gate.wait(120)


@VerbTask.handler(transactional=True)
def stays_transactional(ctx: TaskContext) -> None:
    gate.wait(120)


@VerbTask.handler()
async def astays(ctx: AsyncTaskContext) -> None:
    await asyncio.to_thread(gate.wait, 120)


@VerbTask.handler(transactional=True)
async def astays_transactional(ctx: AsyncTaskContext) -> None:
    await asyncio.to_thread(gate.wait, 120)


@VerbTask.handler()
async def stays_on_the_loop(ctx: AsyncTaskContext) -> None:
    gate.wait(120)


# What hooks see.


@VerbTask.handler()
def tells(ctx: TaskContext) -> list[Any]:
    return [variable.get(), dict(ctx.headers)]


@VerbTask.handler()
async def atells(ctx: AsyncTaskContext) -> list[Any]:
    return [variable.get(), dict(ctx.headers)]


@VerbTask.handler(transactional=True)
def tells_transactional(ctx: TaskContext) -> list[Any]:
    return [variable.get(), dict(ctx.headers)]


@VerbTask.handler(transactional=True)
async def atells_transactional(ctx: AsyncTaskContext) -> list[Any]:
    return [variable.get(), dict(ctx.headers)]


TELLING = [tells, atells, tells_transactional, atells_transactional]


@VerbTask.handler()
def sleeps_once(ctx: TaskContext) -> str:
    ctx.sleep_for(timedelta(seconds=1))
    return "awake"


@VerbTask.handler()
async def asleeps_once(ctx: AsyncTaskContext) -> str:
    await ctx.sleep_for(timedelta(seconds=1))
    return "awake"


@VerbTask.handler()
def spawns(ctx: TaskContext) -> list[str]:
    children = [ctx.spawn(tells.call()), *ctx.spawn_many([tells.call(), tells.call()])]
    return [str(child.task_id) for child in children]


@VerbTask.handler()
async def aspawns(ctx: AsyncTaskContext) -> list[str]:
    children = [await ctx.spawn(tells.call()), *await ctx.spawn_many([tells.call(), tells.call()])]
    return [str(child.task_id) for child in children]


@VerbTask.handler(transactional=True)
def spawns_transactional(ctx: TaskContext) -> list[str]:
    return [str(child.task_id) for child in ctx.spawn_many([tells.call(), tells.call()])]
