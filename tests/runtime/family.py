"""The application of the tests of events and joins: two queues, handlers in both flavours, also imported by
`sa-durable worker`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.orm import Session

from sa_durable import TimedOut
from sa_durable.runtime import AsyncTaskContext, TaskContext
from tests.apps import NOW, application, fail_first_attempt
from tests.runtime.app import calls, gate, seen

Base, ParentTask, ChildTask = application(ParentTask="parents", ChildTask="children")
ONCE: dict[str, Any] = {"max_attempts": 1}
FLAVOURS = ("plain", "async")


@dataclass
class Paid:
    amount: int


# Events


@ParentTask.handler()
def plain_awaits(ctx: TaskContext, name: str, timeout: float | None = None) -> Any:
    calls[name] += 1
    try:
        return ctx.await_event(name, timeout=_time(timeout))
    except TimedOut:
        return "timed out"


@ParentTask.handler()
async def async_awaits(ctx: AsyncTaskContext, name: str, timeout: float | None = None) -> Any:
    calls[name] += 1
    try:
        return await ctx.await_event(name, timeout=_time(timeout))
    except TimedOut:
        return "timed out"


def _time(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


@ParentTask.handler()
def plain_awaits_typed(ctx: TaskContext, name: str) -> int:
    return ctx.await_event(name, returns=Paid).amount


@ParentTask.handler()
async def async_awaits_typed(ctx: AsyncTaskContext, name: str) -> int:
    return (await ctx.await_event(name, returns=Paid)).amount


@ParentTask.handler()
def plain_awaits_each(ctx: TaskContext, names: list[str]) -> list[Any]:
    return [ctx.await_event(name) for name in names]


@ParentTask.handler()
async def async_awaits_each(ctx: AsyncTaskContext, names: list[str]) -> list[Any]:
    return [await ctx.await_event(name) for name in names]


@ParentTask.handler(retry=NOW)
def plain_times_out(ctx: TaskContext, name: str, seconds: float) -> list[Any]:
    """Times out, sleeps, fails and waits anew."""
    try:
        ctx.await_event(name, timeout=timedelta(seconds=seconds))
    except TimedOut as error:
        seen.append(str(error))
    ctx.sleep_for(timedelta(milliseconds=1))
    fail_first_attempt(ctx)
    return [ctx.attempt, ctx.await_event(name)]


@ParentTask.handler(retry=NOW)
async def async_times_out(ctx: AsyncTaskContext, name: str, seconds: float) -> list[Any]:
    try:
        await ctx.await_event(name, timeout=timedelta(seconds=seconds))
    except TimedOut as error:
        seen.append(str(error))
    await ctx.sleep_for(timedelta(milliseconds=1))
    fail_first_attempt(ctx)
    return [ctx.attempt, await ctx.await_event(name)]


@ParentTask.handler(retry=NOW)
def plain_emits(ctx: TaskContext, name: str) -> None:
    ctx.emit_event(name, Paid(ctx.attempt))
    ctx.emit_event(name, Paid(100 + ctx.attempt))
    fail_first_attempt(ctx)


@ParentTask.handler(retry=NOW)
async def async_emits(ctx: AsyncTaskContext, name: str) -> None:
    await ctx.emit_event(name, Paid(ctx.attempt))
    await ctx.emit_event(name, Paid(100 + ctx.attempt))
    fail_first_attempt(ctx)


@ParentTask.handler(transactional=True, retry=NOW)
def plain_transaction(ctx: TaskContext, name: str) -> str:
    """Emits and spawns in its own transaction, which fails the first time."""
    ctx.emit_event(name, ctx.attempt)
    child = ctx.spawn(grows.call(number=ctx.attempt))
    fail_first_attempt(ctx)
    return str(child.task_id)


@ParentTask.handler(transactional=True, retry=NOW)
async def async_transaction(ctx: AsyncTaskContext, name: str) -> str:
    await ctx.emit_event(name, ctx.attempt)
    child = await ctx.spawn(grows.call(number=ctx.attempt))
    fail_first_attempt(ctx)
    return str(child.task_id)


# Children


@ChildTask.handler()
def grows(ctx: TaskContext, number: int) -> int:
    calls["grows"] += 1
    return number + 1


@ChildTask.handler(**ONCE)
async def breaks(ctx: AsyncTaskContext) -> None:
    raise LookupError("no such toy")


@ChildTask.handler(**ONCE)
def waits_at_gate(ctx: TaskContext) -> str:
    gate.wait(120)
    return "let through"


@ChildTask.handler(**ONCE)
async def waits_for_ever(ctx: AsyncTaskContext) -> None:
    await ctx.await_event("never")


def child_of(kind: str, number: int = 1) -> Any:
    return grows.call(number=number) if kind == "grows" else CHILDREN[kind].call()


CHILDREN: dict[str, Any] = {
    "breaks": breaks,
    "waits_at_gate": waits_at_gate,
    "waits_for_ever": waits_for_ever,
}


@ParentTask.handler(**ONCE)
def plain_joins(ctx: TaskContext, kind: str, timeout: float | None = None) -> Any:
    child = ctx.spawn(child_of(kind))
    seen.append(child)
    return ctx.join(child, timeout=_time(timeout))


@ParentTask.handler(**ONCE)
async def async_joins(ctx: AsyncTaskContext, kind: str, timeout: float | None = None) -> Any:
    child = await ctx.spawn(child_of(kind))
    seen.append(child)
    return await ctx.join(child, timeout=_time(timeout))


@ParentTask.handler(**ONCE)
def plain_joins_patiently(ctx: TaskContext, kind: str) -> list[Any]:
    """Joins again what didn't end in time."""
    child = ctx.spawn(child_of(kind))
    try:
        return [ctx.join(child, timeout=timedelta(milliseconds=20))]
    except TimedOut:
        calls["timed out"] += 1
        return ["timed out", ctx.join(child)]


@ParentTask.handler(**ONCE)
async def async_joins_patiently(ctx: AsyncTaskContext, kind: str) -> list[Any]:
    child = await ctx.spawn(child_of(kind))
    try:
        return [await ctx.join(child, timeout=timedelta(milliseconds=20))]
    except TimedOut:
        calls["timed out"] += 1
        return ["timed out", await ctx.join(child)]


@ParentTask.handler(**ONCE)
def plain_joins_all(ctx: TaskContext, kinds: list[str]) -> list[Any]:
    children = ctx.spawn_many([child_of(kind, n) for n, kind in enumerate(kinds)])
    return ctx.join_all(children)


@ParentTask.handler(**ONCE)
async def async_joins_all(ctx: AsyncTaskContext, kinds: list[str]) -> list[Any]:
    children = await ctx.spawn_many([child_of(kind, n) for n, kind in enumerate(kinds)])
    return await ctx.join_all(children)


@ParentTask.handler(**ONCE)
async def async_joins_at_once(ctx: AsyncTaskContext, kinds: list[str]) -> list[Any]:
    """As join_all, in asyncio's words."""
    children = [await ctx.spawn(child_of(kind, n)) for n, kind in enumerate(kinds)]
    return list(await asyncio.gather(*(ctx.join(child) for child in children)))


@ParentTask.handler(**ONCE)
async def async_awaits_at_once(ctx: AsyncTaskContext, times: dict[str, float]) -> list[Any]:
    """Awaits several events, each with a timeout."""

    async def one(name: str, seconds: float) -> Any:
        try:
            return await ctx.await_event(name, timeout=timedelta(seconds=seconds))
        except TimedOut:
            return "timed out"

    return list(await asyncio.gather(*(one(name, seconds) for name, seconds in times.items())))


@ParentTask.handler(**ONCE)
def plain_nests(ctx: TaskContext, depth: int, leaf: str) -> Any:
    """A parent in one queue, whose child is a parent in the other, and so on; the last one spawns `leaf`."""
    call = child_of(leaf) if depth == 0 else async_nests.call(depth=depth - 1, leaf=leaf)
    return ctx.join(ctx.spawn(call))


@ChildTask.handler(**ONCE)
async def async_nests(ctx: AsyncTaskContext, depth: int, leaf: str) -> Any:
    call = child_of(leaf) if depth == 0 else plain_nests.call(depth=depth - 1, leaf=leaf)
    return await ctx.join(await ctx.spawn(call))


@ParentTask.handler(**ONCE)
def plain_leaves(ctx: TaskContext, kind: str, fails: bool) -> str:
    """Spawns a child and doesn't wait for it."""
    child = ctx.spawn(child_of(kind))
    if fails:
        raise RuntimeError("leaves it alone")
    return str(child.task_id)


@ParentTask.handler(**ONCE)
async def async_leaves(ctx: AsyncTaskContext, kind: str, fails: bool) -> str:
    child = await ctx.spawn(child_of(kind))
    if fails:
        raise RuntimeError("leaves it alone")
    return str(child.task_id)


@ParentTask.handler(**ONCE)
def plain_adopts(ctx: TaskContext, key: str) -> Any:
    """Joins a task that was there before."""
    child = ctx.spawn(grows.call(number=1), idempotency_key=key)
    return [child.created, ctx.join(child)]


@ParentTask.handler(**ONCE)
async def async_adopts(ctx: AsyncTaskContext, key: str) -> Any:
    child = await ctx.spawn(grows.call(number=1), idempotency_key=key)
    return [child.created, await ctx.join(child)]


@ParentTask.handler(**ONCE)
def plain_joins_id(ctx: TaskContext, task_id: UUID) -> Any:
    """Joins a task that it knows by its id."""
    return ctx.join(ChildTask, task_id)


@ParentTask.handler(**ONCE)
async def async_joins_id(ctx: AsyncTaskContext, task_id: UUID) -> Any:
    return await ctx.join(ChildTask, task_id)


@ParentTask.handler(only_once=True)
def plain_joins_itself(ctx: TaskContext) -> Any:
    """Its key is its own: what it spawns is itself."""
    return ctx.join(ctx.spawn(plain_joins_itself.call()))


@ParentTask.handler(only_once=True)
async def async_joins_itself(ctx: AsyncTaskContext) -> Any:
    return await ctx.join(await ctx.spawn(async_joins_itself.call()))


# B19: the process dies just before, or just after, the child and its checkpoint are committed.

DIES = "FAMILY_DIES"


def _die_at(moment: str | None) -> None:
    if moment is None:
        return
    thread = threading.get_ident()

    @event.listens_for(Session, f"{moment}_commit")
    def die(_: Session) -> None:
        if threading.get_ident() == thread:
            os.kill(os.getpid(), signal.SIGKILL)


@ParentTask.handler(retry=NOW)
def bereaved(ctx: TaskContext) -> list[Any]:
    _die_at(os.environ.get(DIES))
    child = ctx.spawn(grows.call(number=1))
    return [str(child.task_id), child.created, ctx.join(child)]
