"""The context of async handlers."""

from __future__ import annotations

import inspect
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session
from typing_extensions import Unpack

from ...handlers import Call
from ...ids import uuid7
from ...models import DurableTask
from ...services.references import task_ref
from ...values import SpawnKeywords, SpawnResult
from .base import RANDOM, UUID7, Context
from .gathered_waits import GatheredWaits
from .moments import check_delay, check_moment
from .prepared import Blocking, InSession, Prepared, Ready, Waiting
from .step import Step
from .step_values import unwrap_callable
from .transaction_record import StepRecord

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

P = ParamSpec("P")
R = TypeVar("R")


class AsyncTaskContext(Context):
    """The context of an async (`async def`) handler: its first argument.

    ::

        @BillingTask.handler()
        async def charge(ctx: AsyncTaskContext, order_id: int) -> str:
            return await ctx.step("pay", pay, order_id)

    It has the operations of TaskContext, awaited. Steps of different names can run at the same time
    (`asyncio.gather`), and so can waits.
    """

    _waits: GatheredWaits | None = None
    """The waits of this run, once there is one."""

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
        """Async version of `TaskContext.step`: `fn` may be async.

        A sync `fn` blocks the event loop while it runs.
        """
        step = self._begin_function(name, fn, returns)
        if step.done:
            return step.value
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            value = await value
        return await self.complete_step(step, value)

    async def complete_step(self, step: Step[R], value: R) -> R:
        """Async version of `TaskContext.complete_step`."""
        text = step.encode(self._run, value)
        return step.complete(await self._operations.save(self._run, step.key, text))

    async def now(self) -> datetime:
        """Async version of `TaskContext.now`."""
        return await self._perform(self._prepare_now())

    async def random(self) -> float:
        """Async version of `TaskContext.random`."""
        return await self._draw(RANDOM, random.random, float)

    async def uuid7(self) -> UUID:
        """Async version of `TaskContext.uuid7`."""
        return await self._draw(UUID7, uuid7, UUID)

    async def heartbeat(self) -> None:
        """Async version of `TaskContext.heartbeat`."""
        await self._perform(self._prepare_heartbeat())

    async def sleep_for(self, delay: timedelta) -> None:
        """Async version of `TaskContext.sleep_for`."""
        await self._sleep(check_delay(delay), None)

    async def sleep_until(self, moment: datetime) -> None:
        """Async version of `TaskContext.sleep_until`."""
        await self._sleep(None, check_moment(moment))

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
        """Async version of `TaskContext.transaction`: `fn` may be async, with an AsyncSession.

        A sync `fn` gets a Session, and runs in a thread.
        """
        step = self._begin_function(name, fn, returns)
        if step.done:
            return step.value

        def work(session: Any) -> Any:
            return fn(session, *args, **kwargs)

        transactions, record = self._operations.transactions, StepRecord(self._run, step)
        if inspect.iscoroutinefunction(inspect.unwrap(unwrap_callable(fn))):
            recorded = await transactions.execute_async(self._run, work, record)
        else:
            threads = self._operations.user_threads
            recorded = await threads.call(transactions.execute, self._run, work, record)
        return step.complete(recorded.value)

    @property
    def session(self) -> AsyncSession:
        """The session of a transactional handler, as `TaskContext.session`: an AsyncSession."""
        session: AsyncSession = self._own_session()
        return session

    @overload
    async def await_event(self, name: str, *, timeout: timedelta | None = None) -> Any: ...
    @overload
    async def await_event(self, name: str, *, returns: type[R], timeout: timedelta | None = None) -> R: ...
    async def await_event(self, name: str, *, returns: Any = Any, timeout: timedelta | None = None) -> Any:
        """Async version of `TaskContext.await_event`."""
        return await self._perform(self._prepare_await_event(name, returns, timeout))

    async def emit_event(self, name: str, payload: Any = None) -> None:
        """Async version of `TaskContext.emit_event`."""
        await self._perform(self._prepare_emit(name, payload))

    async def spawn(self, call: Call[Any, R], **options: Unpack[SpawnKeywords]) -> SpawnResult[R]:
        """Async version of `TaskContext.spawn`."""
        return (await self.spawn_many([call], **options))[0]

    async def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> list[SpawnResult[R]]:
        """Async version of `TaskContext.spawn_many`."""
        return await self._perform(self._prepare_spawn(calls, options))

    @overload
    async def join(self, task: SpawnResult[R], /, *, timeout: timedelta | None = None) -> R: ...
    @overload
    async def join(
        self, queue: type[DurableTask], task_id: UUID, /, *, timeout: timedelta | None = None
    ) -> Any: ...
    async def join(self, *task: Any, timeout: timedelta | None = None) -> Any:
        """Async version of `TaskContext.join`."""
        return (await self._perform(self._prepare_join([task_ref(*task)], timeout)))[0]

    async def join_all(self, tasks: Iterable[SpawnResult[R]], *, timeout: timedelta | None = None) -> list[R]:
        """Async version of `TaskContext.join_all`."""
        return await self._perform(self._prepare_join(map(task_ref, tasks), timeout))

    async def _draw(self, name: str, draw: Callable[[], R], kind: type[R]) -> R:
        if self._session is not None:  # as in TaskContext
            return draw()
        step = self._begin_draw(name, kind)
        return step.value if step.done else await self.complete_step(step, draw())

    async def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        if await self._perform(self._prepare_sleep(delay, until)):
            self._suspend()

    async def _perform(self, prepared: Prepared[R]) -> R:
        match prepared:
            case Ready(value):
                return value
            case InSession(call):
                return await self.session.run_sync(call)
            case Blocking(call):
                return await self._operations.threads.call(call)
            case Waiting(step, awaited, timeout):
                if self._waits is None:
                    self._waits = GatheredWaits(self._operations)
                return self._arrived(prepared, await self._waits.wait(self._run, step, awaited, timeout))
