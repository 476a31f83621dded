"""Wait for the result of a task, outside of handlers: `wait_for` and `wait_for_async`."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from math import inf
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, Pool
from sqlalchemy.orm import Session

from ..errors import InvalidOptions, TimedOut
from ..models import DurableTask
from ..services import spawn, waits
from ..services.references import task_ref
from ..statements.notifications import ENDED
from ..values import SpawnResult, TaskResult
from .connections.database import Database
from .connections.engines import EngineOrUrl, engine_for
from .connections.retrying import GIVE_UP_AFTER_S, retry_until, retry_until_async
from .threads.notification_thread import NotificationThread
from .tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:  # importing it needs greenlet, which every application with an AsyncEngine has
    from sqlalchemy.ext.asyncio import AsyncEngine

R = TypeVar("R")

PAUSE_GROWTH = 1.5
"""Each pause between two polls is this many times as long as the one before."""


@overload
def wait_for(
    engine: Engine, task: SpawnResult[R], /, *, timeout: timedelta | None = None, notify: bool = True
) -> TaskResult[R]: ...
@overload
def wait_for(
    engine: Engine, task: DurableTask, /, *, timeout: timedelta | None = None, notify: bool = True
) -> TaskResult[Any]: ...
@overload
def wait_for(
    engine: Engine,
    queue: type[DurableTask],
    task_id: UUID,
    /,
    *,
    timeout: timedelta | None = None,
    notify: bool = True,
) -> TaskResult[Any]: ...
def wait_for(
    engine: Engine,
    *task: Any,
    timeout: timedelta | None = None,
    notify: bool = True,
    _tuning: Tuning = DEFAULT_TUNING,
) -> TaskResult[Any]:
    """Wait until a task has completed, failed or was cancelled, and return its result.

    For callers outside of handlers: in a handler, use `ctx.join`. A task that failed or was cancelled is
    returned like a completed one: check `result.state`, and `result.error`.

    Polls within a second, in short transactions, and holds none of the engine's connections between two
    polls. One more connection listens for notifications; all callers that wait through one engine share it.

    A lost connection, a restart of the database or a serialization failure is retried for up to a minute, and
    within `timeout`. After that PostgreSQL's error is raised.

    Args:
        engine: An Engine of the database that has the task.
        task: What `spawn` returned, a task object, or a task class and an id. The transaction that spawned
            the task must be committed.
        timeout: How long to wait. None: without limit. Zero: poll once.
        notify: False: only poll, and don't listen. Needed where `engine` goes through a pooler that keeps no
            sessions.
        _tuning: For the library's own tests.

    Raises:
        TimedOut: the task has not ended within `timeout`. The error carries its `state`; the task goes on.
        TaskNotFound: there is no such task.
        InvalidResult: the stored result doesn't fit the return type of the handler any more.
        InvalidOptions: `timeout` is negative or no timedelta.
    """
    poller = _ResultPoller(*task_ref(*task), timeout=timeout, notify=notify, tuning=_tuning)
    ended = Event()

    def poll() -> None:
        with Session(engine) as session:
            poller.poll(session)

    # Poll before listening: the first connection initializes the dialect, which other threads must not do
    # meanwhile.
    retry_until("wait_for", poll, limit=poller.time_limit_s)
    if poller.unfinished:
        with on_end(engine, poller.task_id, ended.set) if notify else nullcontext():
            for pause_s in poller.pauses_s():
                ended.wait(pause_s)
                ended.clear()
                retry_until("wait_for", poll, limit=poller.time_limit_s)
    return poller.result


@overload
async def wait_for_async(
    engine: AsyncEngine, task: SpawnResult[R], /, *, timeout: timedelta | None = None, notify: bool = True
) -> TaskResult[R]: ...
@overload
async def wait_for_async(
    engine: AsyncEngine, task: DurableTask, /, *, timeout: timedelta | None = None, notify: bool = True
) -> TaskResult[Any]: ...
@overload
async def wait_for_async(
    engine: AsyncEngine,
    queue: type[DurableTask],
    task_id: UUID,
    /,
    *,
    timeout: timedelta | None = None,
    notify: bool = True,
) -> TaskResult[Any]: ...
async def wait_for_async(
    engine: AsyncEngine,
    *task: Any,
    timeout: timedelta | None = None,
    notify: bool = True,
    _tuning: Tuning = DEFAULT_TUNING,
) -> TaskResult[Any]:
    """Wait until a task has completed, failed or was cancelled, and return its result.

    Does what `wait_for` does, without blocking the event loop.

    Args:
        engine: An AsyncEngine of the database that has the task.
        task: What `spawn` returned, a task object, or a task class and an id. The transaction that spawned
            the task must be committed.
        timeout: How long to wait. None: without limit. Zero: poll once.
        notify: False: only poll, and don't listen. Needed where `engine` goes through a pooler that keeps no
            sessions.
        _tuning: For the library's own tests.

    Raises:
        TimedOut: the task has not ended within `timeout`. The error carries its `state`; the task goes on.
        TaskNotFound: there is no such task.
        InvalidResult: the stored result doesn't fit the return type of the handler any more.
        InvalidOptions: `timeout` is negative or no timedelta.
    """
    from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - needs greenlet

    poller = _ResultPoller(*task_ref(*task), timeout=timeout, notify=notify, tuning=_tuning)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def set_ended() -> None:  # in the listening thread
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ended.set)

    async def poll() -> None:
        async with AsyncSession(engine) as session:
            await session.run_sync(poller.poll)

    await retry_until_async("wait_for", poll, limit=poller.time_limit_s)
    if poller.unfinished:
        with on_end(engine, poller.task_id, set_ended) if notify else nullcontext():
            for pause_s in poller.pauses_s():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), pause_s)
                ended.clear()
                await retry_until_async("wait_for", poll, limit=poller.time_limit_s)
    return poller.result


class _ResultPoller:
    """Polls of one task, and the pauses between them. The caller waits, and gives each poll a session."""

    result: TaskResult[Any]
    """What the last poll read."""

    def __init__(
        self,
        model: type[DurableTask],
        task_id: UUID,
        *,
        timeout: timedelta | None,
        notify: bool,
        tuning: Tuning,
    ) -> None:
        if timeout is not None and (not isinstance(timeout, timedelta) or timeout < timedelta(0)):
            raise InvalidOptions(f"timeout={timeout!r} must be None or a timedelta that is not negative")
        self.model, self.task_id = model, task_id
        self._tuning, self._timeout, self._began = tuning, timeout, monotonic()
        self._marked = not notify
        """Whether the task is marked as awaited. Workers notify only the ends of marked tasks."""

    def poll(self, session: Session) -> None:
        """Read the task's result, in a new session. Mark the task as awaited, unless its row is locked."""
        if not self._marked:
            self._marked = waits.await_end(session, self.model, self.task_id)
        self.result = spawn.result(session, self.model, self.task_id)
        session.commit()

    def pauses_s(self) -> Iterator[float]:
        """Yield the seconds to wait before each next poll, until a poll found that the task has ended.

        Raises:
            TimedOut: the timeout is over.
        """
        pause_s = self._tuning.first_result_pause_s
        while self.unfinished:
            if self._remaining_s <= 0:
                raise self._timed_out()
            yield min(pause_s, self._remaining_s)
            pause_s = min(PAUSE_GROWTH * pause_s, self._tuning.longest_result_pause_s)

    @property
    def unfinished(self) -> bool:
        """Whether the task had not ended at the last poll."""
        return not self.result.state.terminal

    @property
    def time_limit_s(self) -> float:
        """How long one poll may be retried."""
        return max(0.0, min(GIVE_UP_AFTER_S, self._remaining_s))

    @property
    def _remaining_s(self) -> float:
        return inf if self._timeout is None else self._began + self._timeout.total_seconds() - monotonic()

    def _timed_out(self) -> TimedOut:
        state = self.result.state
        return TimedOut(
            f"task {self.task_id} is still {state} after {self._timeout}; it goes on", state=state
        )


OnEnd: TypeAlias = Callable[[], object]
_end_listeners: WeakKeyDictionary[Pool, EndListener] = WeakKeyDictionary()
_lock = Lock()


class EndListener(NotificationThread):
    """Call callbacks when a task ended. Calls all of them when notifications may have been missed."""

    def __init__(self, database: Database) -> None:
        super().__init__("wait_for", database, ENDED)
        self.callbacks: defaultdict[str, list[OnEnd]] = defaultdict(list)
        """By task id. Guarded by `_lock`."""

    def _on_connected(self) -> None:
        self._on_delivered()
        with _lock:
            callbacks = [callback for waiting in self.callbacks.values() for callback in waiting]
        for callback in callbacks:
            callback()

    def _on_notification(self, payload: str) -> None:
        with _lock:
            callbacks = list(self.callbacks.get(payload, ()))
        for callback in callbacks:
            callback()


@contextmanager
def on_end(engine: EngineOrUrl, task_id: UUID, callback: OnEnd) -> Iterator[None]:
    """Call `callback` whenever the task may have ended, while the block lasts. In another thread.

    All blocks of one connection pool share a thread and a connection. The last block that ends closes them.
    """
    pool: Pool = engine.pool  # an AsyncEngine has a pool of its own, too
    key = str(task_id)
    with _lock:
        listener = _end_listeners.get(pool)
        if listener is None:
            listener = _end_listeners[pool] = EndListener(Database(engine_for(engine)))
            listener.thread.start()
        listener.callbacks[key].append(callback)
    try:
        yield
    finally:
        with _lock:
            listener.callbacks[key].remove(callback)
            if not listener.callbacks[key]:
                del listener.callbacks[key]
            last = not listener.callbacks
            if last:
                _end_listeners.pop(pool, None)
        if last:
            listener.thread.stop()
