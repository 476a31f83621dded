"""The application whose tasks the workers of these tests run. Also imported by `sa-durable worker`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from sa_durable import Exponential, NoRetry
from sa_durable.runtime import AsyncTaskContext, TaskContext
from tests.apps import NOW, application, fail_first_attempt

Base, WorkTask, OtherTask = application(WorkTask="work", OtherTask="other")


class Calls(Counter[str]):
    """Handlers count in several threads at once. No Python code comes between the look and the write: none is lost."""

    __missing__ = [].count  # type: ignore[assignment]  # 0; Counter's own is Python code


calls: Counter[str] = Calls()  # what ran in this process
seen: list[Any] = []
gate = threading.Event()  # closed until a test opens it


class Crowd:
    """How many handlers are inside at once, and were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


crowd = Crowd()


def reset() -> None:
    calls.clear()
    seen.clear()
    gate.clear()
    crowd.now = crowd.most = 0


@dataclass
class Receipt:
    number: int
    total: Decimal


def count(what: str, value: Any = None) -> Any:
    calls[what] += 1
    return value


def receipt(number: int) -> Receipt:
    calls["receipt"] += 1
    return Receipt(number, Decimal("1.50"))


async def acount(what: str, value: Any = None) -> Any:
    await asyncio.sleep(0)
    return count(what, value)


@WorkTask.handler()
async def double(ctx: AsyncTaskContext, number: int) -> int:
    return 2 * number


@WorkTask.handler()
def triple(ctx: TaskContext, number: int) -> int:
    return 3 * number


@OtherTask.handler()
def other(ctx: TaskContext) -> str:
    return f"{ctx.queue}.{ctx.name}"


@WorkTask.handler(retry=NOW)
def flaky(ctx: TaskContext, failures: int) -> int:
    """Fails `failures` times, after a step."""
    seen.append(ctx.step("pair", count, "pair", (1, 2)))
    seen.append(ctx.step("receipt", receipt, 7))
    seen.append(ctx.step("nothing", count, "nothing"))
    if ctx.attempt <= failures:
        raise ConnectionError("no \0 luck \ud800")
    return ctx.attempt


@WorkTask.handler(retry=NOW)
async def aflaky(ctx: AsyncTaskContext, failures: int) -> int:
    seen.append(await ctx.step("pair", acount, "pair", (1, 2)))
    seen.append(await ctx.step("receipt", receipt, 7))
    seen.append(await ctx.step("nothing", acount, "nothing"))
    if ctx.attempt <= failures:
        raise ConnectionError("no luck")
    return ctx.attempt


@WorkTask.handler(retry=NOW)
def repeated(ctx: TaskContext) -> list[int]:
    got = [ctx.step("k", count, "k", n) for n in (10, 20, 30)]
    seen.append(got)
    fail_first_attempt(ctx)
    return got


@WorkTask.handler(retry=NOW)
def broken_step(ctx: TaskContext) -> str:
    def step() -> str:
        calls["broken"] += 1
        if calls["broken"] == 1:
            raise ValueError("the first time")
        return "fine"

    return ctx.step("broken", step)


@WorkTask.handler()
async def together(ctx: AsyncTaskContext) -> list[int]:
    return list(await asyncio.gather(*(ctx.step(f"s{n}", acount, "s", n) for n in range(8))))


@WorkTask.handler(
    max_attempts=3, retry=Exponential(timedelta(seconds=40), 3, timedelta(seconds=90), jitter=0)
)
def hopeless(ctx: TaskContext) -> None:
    raise RuntimeError("x" * 100_000)


@WorkTask.handler(retry=NoRetry())
def once(ctx: TaskContext) -> None:
    raise RuntimeError("once is enough")


@WorkTask.handler()
def unstorable(ctx: TaskContext):
    count("unstorable")
    return {"nan": float("nan")}


@WorkTask.handler()
async def leaves(ctx: AsyncTaskContext) -> None:
    count("leaves")
    raise SystemExit(3)


@WorkTask.handler()
def naps(ctx: TaskContext, seconds: float) -> list[Any]:
    count("naps")
    first = ctx.step("first", count, "first", 1)
    ctx.sleep_for(timedelta(seconds=seconds))
    ctx.sleep_for(timedelta(seconds=seconds))
    return [first, str(ctx.run_id), ctx.attempt]


@WorkTask.handler()
async def anaps(ctx: AsyncTaskContext, seconds: float) -> int:
    await ctx.sleep_for(timedelta(seconds=seconds))
    return ctx.attempt


@WorkTask.handler()
def swallows(ctx: TaskContext) -> str:
    """Takes Suspend for an error and goes on."""
    try:
        ctx.sleep_for(timedelta(hours=1))
    except BaseException as error:
        seen.append(type(error).__name__)
    try:
        ctx.step("late", count, "late")
    except BaseException as error:
        seen.append(type(error).__name__)
    return "as if nothing had happened"


@WorkTask.handler()
async def aswallows(ctx: AsyncTaskContext) -> str:
    count("aswallows")
    while not gate.is_set():
        try:
            await asyncio.sleep(0.01)
        except BaseException as error:
            seen.append(type(error).__name__)
            break
    try:
        await ctx.step("late", count, "late")
    except BaseException as error:
        seen.append(type(error).__name__)
    return "as if nothing had happened"


@WorkTask.handler()
def waits(ctx: TaskContext, label: str) -> str:
    """Holds a slot until the gate opens."""
    with crowd:
        calls[label] += 1
        gate.wait(120)
    return label


@WorkTask.handler()
def quick(ctx: TaskContext, label: str) -> str:
    with crowd:
        calls[label] += 1
    return label


@WorkTask.handler()
def waits_then_steps(ctx: TaskContext) -> None:
    calls["inside"] += 1
    gate.wait(120)
    try:
        ctx.step("late", count, "late")
    except BaseException as error:
        seen.append(type(error).__name__)
        raise


# What the worker's processes run: the steps are the facts that tests wait for.


@WorkTask.handler()
def hangs(ctx: TaskContext) -> str:
    ctx.step("begun", lambda: True)
    ctx.step("long", time.sleep, 600)
    return "never"


@WorkTask.handler()
async def ahangs(ctx: AsyncTaskContext) -> str:
    await ctx.step("begun", lambda: True)
    await ctx.step("long", asyncio.sleep, 600)
    return "never"


@WorkTask.handler()
def waits_for_file(ctx: TaskContext, path: str) -> str:
    ctx.step("begun", lambda: True)
    while not Path(path).exists():
        time.sleep(0.01)
    return "done"


@WorkTask.handler()
def takes_once(ctx: TaskContext) -> list[Any]:
    """Takes long in the process that runs its step; another one replays it."""
    begun = []

    def begin() -> bool:
        begun.append(True)
        return True

    value = ctx.step("begun", begin)
    if begun:
        time.sleep(600)
    return [value, ctx.attempt]


@WorkTask.handler()
async def shields(ctx: AsyncTaskContext) -> str:
    """Doesn't let itself be cancelled."""
    await ctx.step("begun", lambda: True)
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            count("shielded")


@WorkTask.handler()
async def blocks(ctx: AsyncTaskContext, seconds: float) -> str:
    """Holds the event loop, asleep."""
    await ctx.step("begun", lambda: True)
    time.sleep(seconds)  # noqa: ASYNC251 - that is the point
    return "done"


def _compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(n * n for n in range(1000))


@WorkTask.handler()
async def computes(ctx: AsyncTaskContext, seconds: float) -> str:
    _compute(seconds)
    return "done"


@WorkTask.handler()
def plain_computes(ctx: TaskContext, seconds: float) -> str:
    _compute(seconds)
    return "done"


@WorkTask.handler(retry=NOW)
def holds_gil(ctx: TaskContext, pipe: str) -> str:
    """In the first attempt a C call that keeps the GIL until a test writes into the pipe: nothing else runs here meanwhile."""
    if ctx.attempt == 1:
        end = os.open(pipe, os.O_RDWR)  # which waits for nobody
        ctx.step("begun", lambda: True)
        ctypes.PyDLL(None).read(end, ctypes.create_string_buffer(1), 1)
        ctx.step("late", lambda: True)
    return f"attempt {ctx.attempt}"


@WorkTask.handler()
def wall_clock(ctx: TaskContext) -> float:
    """What time this process thinks it is."""
    return time.time()
