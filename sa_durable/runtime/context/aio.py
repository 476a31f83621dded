"""The context of async handlers: the verbs of plain_context, awaited."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session
from typing_extensions import Unpack

from ...handlers import Call
from ...ids import uuid7
from ...models import DurableTask
from ...services import child_tasks, clock, events
from ...services.durable import task_ref
from ...services.waits import Awaited, AwaitedEvent
from ...values import Json, SpawnKeywords, SpawnResult
from . import waits
from .base import (
    AWAIT,
    EMIT,
    JOIN,
    NOW,
    RANDOM,
    SLEEP,
    SPAWN,
    UUID7,
    Context,
    check_delay,
    check_moment,
    check_timeout,
    read_moment,
)
from .gathered_waits import GatheredWaits
from .manual_step import Step
from .replay import NotYetRun, Replayed, check_step_name, library_step_name
from .steps import coder_for_function, coder_for_type, decode, encode
from .transaction_record import StepRecord

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

P = ParamSpec("P")
R = TypeVar("R")


class AsyncTaskContext(Context):
    """The context of an `async def` handler: the verbs of TaskContext, awaited.

    ::

        @BillingTask.handler()
        async def charge(ctx: AsyncTaskContext, order_id: int) -> str:
            return await ctx.step("pay", pay, order_id)

    Steps of different names can run at the same time (`asyncio.gather`), and so can waits.
    """

    _waits: GatheredWaits | None = None  # made by the first wait

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
        coder = coder_for_function(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        text = encode(coder, value, slot.key)
        stored = await self._operations.save(self._run, slot.key, text)
        return decode(coder, stored, slot.key)

    async def complete_step(self, step: Step[R], value: R) -> R:
        """As TaskContext.complete_step."""
        text = step.encode(self._run, value)
        return step.complete(await self._operations.save(self._run, step.key, text))

    async def now(self) -> datetime:
        """As TaskContext.now."""
        if self._session is not None:
            moment: datetime = await self._session.run_sync(clock.now)
            return moment
        slot = self._next(NOW)
        if isinstance(slot, Replayed):
            return read_moment(slot.value)
        return read_moment(
            await self._operations.threads.call(self._operations.steps.now, self._run, slot.key)
        )

    async def random(self) -> float:
        """As TaskContext.random."""
        return await self._draw(RANDOM, random.random, float)

    async def uuid7(self) -> UUID:
        """As TaskContext.uuid7."""
        return await self._draw(UUID7, uuid7, UUID)

    async def _draw(self, name: str, draw: Callable[[], R], kind: type[R]) -> R:
        if self._session is not None:
            return draw()
        slot, coder = self._next(name), coder_for_type(kind)
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)  # type: ignore[no-any-return]  # of this kind
        text = encode(coder, draw(), slot.key)
        stored = await self._operations.save(self._run, slot.key, text)
        return decode(coder, stored, slot.key)  # type: ignore[no-any-return]  # as above

    async def heartbeat(self) -> None:
        """As TaskContext.heartbeat."""
        await self._operations.threads.call(self._operations.steps.extend, self._run)

    async def sleep_for(self, delay: timedelta) -> None:
        """As TaskContext.sleep_for."""
        await self._sleep(check_delay(delay), None)

    async def sleep_until(self, moment: datetime) -> None:
        """As TaskContext.sleep_until."""
        await self._sleep(None, check_moment(moment))

    async def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        key = self._next(SLEEP).key
        if await self._operations.threads.call(self._operations.steps.sleep, self._run, key, delay, until):
            self._suspend()

    @overload
    async def transaction(
        self,
        name: str,
        fn: Callable[Concatenate[AsyncSession, P], Awaitable[R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def transaction(
        self, name: str, fn: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def transaction(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any
    ) -> R: ...
    async def transaction(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any
    ) -> Any:
        """As TaskContext.transaction. An async `fn` is given an AsyncSession; a plain one a Session, in a thread."""
        coder = coder_for_function(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)

        def work(session: Any) -> Any:
            return fn(session, *args, **kwargs)

        transactions = self._operations.transactions
        done = StepRecord(self._run, slot.key, coder)
        if inspect.iscoroutinefunction(inspect.unwrap(_function(fn))):
            found = await transactions.execute_async(self._run, work, done)
        else:
            found = await self._operations.user_threads.call(transactions.execute, self._run, work, done)
        return decode(coder, found.value, slot.key)

    @property
    def session(self) -> AsyncSession:
        """As TaskContext.session."""
        session: AsyncSession = self._own_session()
        return session

    @overload
    async def await_event(self, name: str, *, timeout: timedelta | None = None) -> Any: ...
    @overload
    async def await_event(self, name: str, *, returns: type[R], timeout: timedelta | None = None) -> R: ...
    async def await_event(self, name: str, *, returns: Any = Any, timeout: timedelta | None = None) -> Any:
        """As TaskContext.await_event."""
        coder = coder_for_type(returns)
        slot, timeout = self._next(library_step_name(AWAIT, events.check_name(name))), check_timeout(timeout)
        value = await self._wait(slot, AwaitedEvent(self._run.model, name), timeout)
        return waits.payload(coder, value, slot.key)

    async def emit_event(self, name: str, payload: Any = None) -> None:
        """As TaskContext.emit_event."""
        text = events.encode(events.check_name(name), payload)
        if self._session is not None:
            await self._session.run_sync(events.emit_encoded, self._run.model, name, text)
        elif isinstance(slot := self._next(library_step_name(EMIT, name)), NotYetRun):
            await self._operations.threads.call(self._operations.waits.emit, self._run, slot.key, name, text)

    async def spawn(self, call: Call[Any, R], **options: Unpack[SpawnKeywords]) -> SpawnResult[R]:
        """As TaskContext.spawn."""
        return (await self.spawn_many([call], **options))[0]

    async def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> list[SpawnResult[R]]:
        """As TaskContext.spawn_many."""
        batch = list(calls)
        model, claim = self._run.model, self._run.claim
        if self._session is not None:
            spawned: list[SpawnResult[R]] = await self._session.run_sync(
                child_tasks.spawn_in, model, claim, batch, options
            )
            return spawned
        if not batch:
            return []
        slot = self._next(library_step_name(SPAWN, batch[0].name))
        if isinstance(slot, Replayed):
            return child_tasks.from_checkpoint(batch, slot.value)
        spawn = partial(self._operations.waits.spawn, self._run, slot.key, batch, options)
        return child_tasks.from_checkpoint(batch, await self._operations.threads.call(spawn))

    @overload
    async def join(self, task: SpawnResult[R], /, *, timeout: timedelta | None = None) -> R: ...
    @overload
    async def join(
        self, queue: type[DurableTask], task_id: UUID, /, *, timeout: timedelta | None = None
    ) -> Any: ...
    async def join(self, *what: Any, timeout: timedelta | None = None) -> Any:
        """As TaskContext.join."""
        return (await self._join([task_ref(*what)], timeout))[0]

    async def join_all(self, tasks: Iterable[SpawnResult[R]], *, timeout: timedelta | None = None) -> list[R]:
        """As TaskContext.join_all."""
        return await self._join([task_ref(task) for task in tasks], timeout)

    async def _join(self, tasks: list[waits.Ref], timeout: timedelta | None) -> list[Any]:
        ends = self._ends(tasks)
        slot, timeout = self._next(JOIN), check_timeout(timeout)
        return waits.results(ends.tasks, await self._wait(slot, ends, timeout), slot.key)

    async def _wait(self, slot: Replayed | NotYetRun, what: Awaited, timeout: timedelta | None) -> Json:
        if isinstance(slot, Replayed):
            return slot.value
        if self._waits is None:
            self._waits = GatheredWaits(self._operations)
        value = await self._waits.wait(self._run, slot.key, what, timeout)
        return value if value is not None else self._suspend()


def _function(fn: Any) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) else getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is wanted
