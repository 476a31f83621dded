"""What a handler gets first: its task's identity, and the durable verbs. One vocabulary, plain and async."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, ParamSpec, TypeVar, overload
from uuid import UUID

from ..errors import DeclarationError, InvalidOptions, Suspend
from ..values import Json
from .journal import Journal, Missing, Recorded, check_step_name
from .live import LiveRun
from .steps import Steps, coder_for, decode, encode

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_SLEEP = timedelta(days=36500)
_SLEEP = "$sleep"


class _Context:
    def __init__(self, run: LiveRun, steps: Steps) -> None:
        self._run, self._steps = run, steps

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of task {self.task_id}, attempt {self.attempt}>"

    @property
    def task_id(self) -> UUID:
        return self._run.claim.task_id

    @property
    def run_id(self) -> UUID:
        """The current attempt's id: the same after a sleep, another one after a failure."""
        return self._run.claim.run_id

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._run.claim.attempt

    @property
    def name(self) -> str:
        """The task's, by which its handler was found."""
        return self._run.claim.name

    @property
    def queue(self) -> str:
        return self._run.claim.queue

    @property
    def headers(self) -> Mapping[str, Json]:
        """What the spawn gave beside the params; read-only."""
        return MappingProxyType(dict(self._run.claim.headers or {}))

    @cached_property
    def _journal(self) -> Journal:
        return Journal(self._run.saved)

    def _next(self, name: str) -> Recorded | Missing:
        self._run.check()
        return self._journal.next(name)

    def _suspend(self) -> NoReturn:
        self._run.suspend(Suspend(f"task {self.task_id} sleeps"))


def _check_delay(delay: timedelta) -> timedelta:
    if not isinstance(delay, timedelta) or not timedelta(0) <= delay <= LONGEST_SLEEP:
        raise InvalidOptions(f"sleep_for({delay!r}): a timedelta from 0 to {LONGEST_SLEEP.days} days")
    return delay


def _check_moment(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOptions(f"sleep_until({moment!r}): an aware datetime, e.g. with tzinfo=UTC")
    return moment


class TaskContext(_Context):
    """The context of a plain `def` handler.

    ::

        @BillingTask.handler()
        def charge(ctx: TaskContext, order_id: int) -> str:
            payment = ctx.step("pay", pay, order_id)        # runs once, whatever happens to this process
            ctx.sleep_for(timedelta(days=3))                 # holds no thread meanwhile
            return ctx.step("receipt", send_receipt, payment)

    Every method raises Cancelled or LeaseLost once the run must stop, and goes on doing so: what a handler does
    after that is not stored.
    """

    @overload
    def step(self, name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any) -> R: ...
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any) -> Any:
        """The value of `fn(*args, **kwargs)`, saved under `name`: a finished step never runs again.

        What comes back is the saved value decoded, the first time too: by `returns` or the return annotation of
        `fn`, else as plain JSON (a tuple is a list then). The same name again is another step. A step that raises
        saves nothing. Raises InvalidResult for a value that JSON can't hold, DeclarationError for a name or
        annotation that can't work.
        """
        coder = coder_for(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Recorded):
            return decode(coder, slot.value, slot.key)
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise DeclarationError(f"step {name!r} is async: its handler must be an async def")
        stored = self._steps.save(self._run, slot.key, encode(coder, value, slot.key))
        return decode(coder, stored, slot.key)

    def sleep_for(self, delay: timedelta) -> None:
        """Suspend the task; it goes on after `delay`, by the database's clock, in the same run and attempt.

        The handler starts again from the top then, its finished steps are replayed and this returns.
        """
        self._sleep(_check_delay(delay), None)

    def sleep_until(self, moment: datetime) -> None:
        """As `sleep_for`, until an aware datetime; a past one doesn't suspend."""
        self._sleep(None, _check_moment(moment))

    def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        if self._steps.sleep(self._run, self._next(_SLEEP).key, delay, until):
            self._suspend()


class AsyncTaskContext(_Context):
    """The context of an `async def` handler: the verbs of TaskContext, awaited.

    ::

        @BillingTask.handler()
        async def charge(ctx: AsyncTaskContext, order_id: int) -> str:
            return await ctx.step("pay", pay, order_id)

    Steps of different names can run at the same time (`asyncio.gather`).
    """

    @overload
    async def step(
        self, name: str, fn: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def step(self, name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def step(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any
    ) -> R: ...
    async def step(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any
    ) -> Any:
        """As TaskContext.step; `fn` may be async or plain (a plain one blocks the event loop while it runs)."""
        coder = coder_for(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Recorded):
            return decode(coder, slot.value, slot.key)
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        text = encode(coder, value, slot.key)
        stored = await self._steps.threads.call(self._steps.save, self._run, slot.key, text)
        return decode(coder, stored, slot.key)

    async def sleep_for(self, delay: timedelta) -> None:
        """As TaskContext.sleep_for."""
        await self._sleep(_check_delay(delay), None)

    async def sleep_until(self, moment: datetime) -> None:
        """As TaskContext.sleep_until."""
        await self._sleep(None, _check_moment(moment))

    async def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        key = self._next(_SLEEP).key
        if await self._steps.threads.call(self._steps.sleep, self._run, key, delay, until):
            self._suspend()
