"""An application whose tasks the test helpers run: each operation in a sync and an async handler."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy.orm import Session

from sa_durable import AsyncTaskContext, Exponential, Fixed, NoRetry, TaskContext, TimedOut
from tests.apps import NoteColumns, application

WEEK = timedelta(days=7)
calls: Counter[str] = Counter()
gate = threading.Event()  # closed until a test opens it


Base, MainTask, SideTask = application(MainTask="main", SideTask="side")


class Effect(NoteColumns, Base):
    __tablename__ = "effects"


def count(what: str) -> int:
    calls[what] += 1
    return calls[what]


@MainTask.handler()
def plain(ctx: TaskContext, number: int, price: Decimal = Decimal(1)) -> int:
    return ctx.step("count", count, "plain") + number


@MainTask.handler()
async def coroutine(ctx: AsyncTaskContext, number: int) -> int:
    await asyncio.sleep(0)
    return await ctx.step("count", count, "coroutine") + number


@MainTask.handler()
def naps(ctx: TaskContext) -> list[Any]:
    first = ctx.step("first", count, "naps")
    ctx.sleep_for(WEEK)
    second = ctx.step("second", count, "naps")
    ctx.sleep_for(timedelta(minutes=5))
    return [first, second, str(ctx.run_id), ctx.attempt]


@MainTask.handler()
async def anaps(ctx: AsyncTaskContext) -> list[Any]:
    first = await ctx.step("first", count, "naps")
    await ctx.sleep_for(WEEK)
    second = await ctx.step("second", count, "naps")
    await ctx.sleep_for(timedelta(minutes=5))
    return [first, second, str(ctx.run_id), ctx.attempt]


BACKOFF = Exponential(timedelta(seconds=40), 3, timedelta(seconds=90), jitter=0)


@MainTask.handler(max_attempts=3, retry=BACKOFF)
def hopeless(ctx: TaskContext) -> None:
    raise ConnectionError(f"attempt {ctx.attempt}")


@MainTask.handler(max_attempts=3, retry=BACKOFF)
async def ahopeless(ctx: AsyncTaskContext) -> None:
    raise ConnectionError(f"attempt {ctx.attempt}")


@MainTask.handler(max_attempts=2, retry=Fixed(timedelta(0), jitter=0))
def flaky(ctx: TaskContext) -> int:
    if ctx.attempt == 1:
        raise TimeoutError("the first time")
    return ctx.attempt


@MainTask.handler()
def waits_for(ctx: TaskContext, name: str) -> Any:
    try:
        return ctx.await_event(name, timeout=WEEK)
    except TimedOut:
        return "too late"


@MainTask.handler()
async def awaits_for(ctx: AsyncTaskContext, name: str) -> Any:
    try:
        return await ctx.await_event(name, timeout=WEEK)
    except TimedOut:
        return "too late"


@MainTask.handler()
def emits(ctx: TaskContext, name: str) -> None:
    ctx.emit_event(name, {"by": ctx.name})


@MainTask.handler()
def parent(ctx: TaskContext) -> list[int]:
    return ctx.join_all([ctx.spawn(child.call(number=n)) for n in (1, 2)])


@MainTask.handler()
async def aparent(ctx: AsyncTaskContext) -> list[int]:
    return await ctx.join_all([await ctx.spawn(child.call(number=n)) for n in (1, 2)])


@SideTask.handler()
def child(ctx: TaskContext, number: int) -> int:
    ctx.sleep_for(WEEK)
    return 10 * number


@MainTask.handler()
def writes(ctx: TaskContext, what: str) -> None:
    def write(session: Session) -> None:
        session.add(Effect(what=what))

    ctx.transaction("write", write)


@MainTask.handler()
async def awrites(ctx: AsyncTaskContext, what: str) -> None:
    async def write(session: Any) -> None:
        session.add(Effect(what=what))

    await ctx.transaction("write", write)


@MainTask.handler(transactional=True)
def writes_whole(ctx: TaskContext, what: str) -> str:
    ctx.session.add(Effect(what=what))
    return what


@MainTask.handler()
def spawns_itself(ctx: TaskContext) -> None:
    ctx.spawn(spawns_itself.call())


@MainTask.handler()
def hangs(ctx: TaskContext) -> None:
    gate.wait(120)


@MainTask.handler()
async def ahangs(ctx: AsyncTaskContext) -> None:
    await asyncio.sleep(600)


@MainTask.handler(timeout=timedelta(seconds=0.1), retry=NoRetry())
async def takes_too_long(ctx: AsyncTaskContext) -> None:
    await asyncio.sleep(600)


@MainTask.handler()
def says(ctx: TaskContext, count: int, key: str) -> None: ...
