"""Waiting for how a task ends, outside of any handler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from math import inf
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ..errors import InvalidOptions, TimedOut
from ..models import DurableTask
from ..services import spawn, waits
from ..services.references import task_ref
from ..values import SpawnResult, TaskResult
from .connections.retrying import GIVE_UP_AFTER_S, retry_until, retry_until_async

if TYPE_CHECKING:  # importing it needs greenlet, which whoever has an AsyncEngine has
    from sqlalchemy.ext.asyncio import AsyncEngine


from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from sqlalchemy import Pool

from ..statements.notifications import ENDED
from .connections.database import Database
from .connections.engines import EngineOrUrl, engine_for
from .threads.notification_thread import NotificationThread

R = TypeVar("R")

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.01, 1.0, 1.5


@overload
def wait_for(
    engine: Engine, task: SpawnResult[R], /, *, timeout: timedelta | None, notify: bool = True
) -> TaskResult[R]: ...
@overload
def wait_for(
    engine: Engine, task: DurableTask, /, *, timeout: timedelta | None, notify: bool = True
) -> TaskResult[Any]: ...
@overload
def wait_for(
    engine: Engine,
    queue: type[DurableTask],
    task_id: UUID,
    /,
    *,
    timeout: timedelta | None,
    notify: bool = True,
) -> TaskResult[Any]: ...
def wait_for(engine: Engine, *what: Any, timeout: timedelta | None, notify: bool = True) -> TaskResult[Any]:
    """How a task ended, once it has: completed, failed or cancelled. For callers outside of handlers.

    The task must be committed. Looks every second at the least, in short transactions of its own, and holds none of
    the engine's connections meanwhile; one more connection listens, for all who wait through this engine. Where `engine`
    goes through a pooler that keeps no sessions, say `notify=False`: it looks, and nothing listens.

    A database that is away for up to a minute, and a lost race, are waited out, within `timeout`; then PostgreSQL's error
    is raised.

    Raises TimedOut after `timeout` (None: never), which carries the task's `state`: the task goes on. Raises
    TaskNotFound, and InvalidResult for a result that the handler's return type no longer fits.
    """
    waiting = _ResultPoller(*task_ref(*what), timeout=timeout, notify=notify)
    hint = Event()

    def look() -> None:
        with Session(engine) as session:
            waiting.poll(session)

    retry_until(
        "wait_for", look, limit=waiting.time_limit
    )  # first: it initialises the dialect for other threads
    if waiting.unfinished:
        with on_end(engine, waiting.task_id, hint.set) if notify else nullcontext():
            for pause in waiting.pauses():
                hint.wait(pause)
                hint.clear()
                retry_until("wait_for", look, limit=waiting.time_limit)
    return waiting.result


@overload
async def wait_for_async(
    engine: AsyncEngine, task: SpawnResult[R], /, *, timeout: timedelta | None, notify: bool = True
) -> TaskResult[R]: ...
@overload
async def wait_for_async(
    engine: AsyncEngine, task: DurableTask, /, *, timeout: timedelta | None, notify: bool = True
) -> TaskResult[Any]: ...
@overload
async def wait_for_async(
    engine: AsyncEngine,
    queue: type[DurableTask],
    task_id: UUID,
    /,
    *,
    timeout: timedelta | None,
    notify: bool = True,
) -> TaskResult[Any]: ...
async def wait_for_async(
    engine: AsyncEngine, *what: Any, timeout: timedelta | None, notify: bool = True
) -> TaskResult[Any]:
    """As wait_for, awaited."""
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - needs greenlet

    waiting = _ResultPoller(*task_ref(*what), timeout=timeout, notify=notify)
    loop, hint = asyncio.get_running_loop(), asyncio.Event()

    def call() -> None:  # in the listening thread
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(hint.set)

    async def look() -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(waiting.poll)

    await retry_until_async("wait_for", look, limit=waiting.time_limit)
    if waiting.unfinished:
        with on_end(engine, waiting.task_id, call) if notify else nullcontext():
            for pause in waiting.pauses():
                with suppress(TimeoutError):
                    await asyncio.wait_for(hint.wait(), pause)
                hint.clear()
                await retry_until_async("wait_for", look, limit=waiting.time_limit)
    return waiting.result


class _ResultPoller:
    """A task, and when to look at it. What waits and looks is the caller's."""

    result: TaskResult[Any]
    """What the last look saw."""

    def __init__(
        self, model: type[DurableTask], task_id: UUID, *, timeout: timedelta | None, notify: bool
    ) -> None:
        if timeout is not None and (not isinstance(timeout, timedelta) or timeout < timedelta(0)):
            raise InvalidOptions(f"timeout={timeout!r} must be None or a timedelta that is not negative")
        self.model, self.task_id = model, task_id
        self._timeout, self._began = timeout, monotonic()
        self._announced = not notify  # nobody need be told that the end is awaited

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each next look, until one has seen the end. Raises TimedOut."""
        pause = FIRST_PAUSE
        while self.unfinished:
            if self._remaining <= 0:
                raise self._timed_out()
            yield min(pause, self._remaining)
            pause = min(GROWTH * pause, LONGEST_PAUSE)

    @property
    def time_limit(self) -> float:
        """Seconds that a look may take altogether."""
        return max(0.0, min(GIVE_UP_AFTER_S, self._remaining))

    @property
    def _remaining(self) -> float:
        return inf if self._timeout is None else self._began + self._timeout.total_seconds() - monotonic()

    def poll(self, session: Session) -> None:
        """In a new session. The first time the task is marked, so that its end is notified; if somebody has locked it, the
        next time."""
        if not self._announced:
            self._announced = waits.await_end(session, self.model, self.task_id)
        self.result = spawn.result(session, self.model, self.task_id)
        session.commit()

    @property
    def unfinished(self) -> bool:
        return not self.result.state.terminal

    def _timed_out(self) -> TimedOut:
        state = self.result.state
        return TimedOut(
            f"task {self.task_id} is still {state} after {self._timeout}; it goes on", state=state
        )


Call = Callable[[], object]
_listening: WeakKeyDictionary[Pool, EndListener] = WeakKeyDictionary()
_lock = Lock()


class EndListener(NotificationThread):
    """Calls who waits for a task when its end is notified, and everybody when notifications may have been missed."""

    def __init__(self, database: Database) -> None:
        super().__init__("wait_for", database, ENDED)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)  # under _lock

    def _on_connected(self) -> None:
        self._on_delivered()
        with _lock:
            calls = [call for waiting in self.calls.values() for call in waiting]
        for call in calls:
            call()

    def _on_notification(self, payload: str) -> None:
        with _lock:
            calls = list(self.calls.get(payload, ()))
        for call in calls:
            call()


@contextmanager
def on_end(engine: EngineOrUrl, task_id: UUID, call: Call) -> Iterator[None]:
    """Have `call` called, in another thread, when the task may have ended. It is a hint."""
    pool: Pool = engine.pool  # an AsyncEngine has its own, too
    name = str(task_id)
    with _lock:
        ends = _listening.get(pool)
        if ends is None:
            ends = _listening[pool] = EndListener(Database(engine_for(engine)))
            ends.thread.start()
        ends.calls[name].append(call)
    try:
        yield
    finally:
        with _lock:
            ends.calls[name].remove(call)
            if not ends.calls[name]:
                del ends.calls[name]
            last = not ends.calls
            if last:  # who comes next begins anew
                _listening.pop(pool, None)
        if last:
            ends.thread.stop()
