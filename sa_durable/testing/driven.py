"""A worker without threads of its own, whose parts a test drives one run after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from ..runtime.connections.database import Database
from ..runtime.connections.engines import EngineOrUrl, engine_for
from ..runtime.context.transactions import AsyncSessionFactory, SessionFactory
from ..runtime.parts import build_parts
from ..runtime.runs.active import ActiveRun
from ..runtime.runs.completer import LOCKED_RETRY_S
from ..runtime.shutdown import release_unfinished
from ..runtime.signals import UNWIND_S
from ..runtime.tuning import Tuning
from ..runtime.worker_options import WorkerOptions
from ..values import ACTIVE, TaskState

if TYPE_CHECKING:
    from ..models import DurableTask

P = ParamSpec("P")
T = TypeVar("T")

MAX_REMAINING = 1000
"""Most tasks that `DrivenWorker.remaining` lists."""

NEVER = timedelta(days=1)
"""Longer than any test, for intervals that don't matter here."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run of a handler, and the state that it left its task in."""

    name: str
    """The task's name."""

    state: TaskState | None
    """The task's state directly after the run. Pending: it is retried at once. None: its row was deleted."""

    attempt: int
    queue: str
    task_id: UUID

    error: BaseException | None = field(default=None, compare=False)
    """What the handler raised."""


@dataclass(frozen=True, slots=True)
class RemainingTask:
    """A task that has not ended.

    It sleeps, or it can't be claimed here: no handler of its name is known, or its queue is paused.
    """

    name: str
    """The task's name."""

    state: TaskState

    due: datetime | None
    """When the task wakes by itself. None: it doesn't sleep, or it waits without a timeout."""

    attempt: int
    queue: str
    task_id: UUID


class DrivenWorker:
    """The parts of a worker, without their threads: the caller says when to claim a task and when to run it.

    All parts share one connection of the engine's own pool.
    """

    claimed: ActiveRun | None
    """The run that was claimed and is not stored yet."""

    def __init__(
        self,
        engine: EngineOrUrl,
        queues: Iterable[type[DurableTask]],
        session_factory: SessionFactory | None,
        async_session_factory: AsyncSessionFactory | None,
    ) -> None:
        source = _plain(engine)
        self._database = Database(source, own_pool=source is not engine)
        self._parts = build_parts(
            engine,
            queues,
            WorkerOptions(
                worker_id="run_until_idle",
                concurrency=1,
                prefetch=0,
                lease=NEVER,  # of this process's clock; the database's clock may be moved
                poll_interval=NEVER,
                sweep_interval=NEVER,
                notify=False,
            ),
            session_factory=session_factory,
            async_session_factory=async_session_factory,
            tuning=Tuning(full_scan_interval_s=0),  # no task waits for the next full scan
            database=self._database,
            accept=self._accept,
            on_error=self._on_error,
        )
        self._parts.loop.attach()
        self._run_ended = asyncio.Event()
        self._error: BaseException | None = None
        self._database_lock = Lock()  # one thread uses the database at a time
        self._closing = False
        self.claimed = None

    async def claim_next(self) -> ActiveRun | None:
        """Wake, sweep and claim until a task is claimed. Return None if there is nothing left to do."""
        more = True
        while more and self.claimed is None:
            more = await self._call(self._poll)
        return self.claimed

    async def run_next(self, run: ActiveRun) -> FinishedRun:
        """Run the task that was claimed, and store the outcome."""
        self._run_ended.clear()
        self._error = None
        self._parts.capacity.start()
        self._parts.executor.start(run, self)
        while not self._run_ended.is_set():
            pause_s = self._parts.timeouts.thread.run_once()  # for handlers that have a timeout
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._run_ended.wait()
        stored, state = await self._call(self._store, run)
        while not stored:
            await asyncio.sleep(LOCKED_RETRY_S)
            stored, state = await self._call(self._store, run)
        claim, self.claimed = run.claim, None
        return FinishedRun(claim.name, state, claim.attempt, claim.queue, claim.task_id, self._error)

    async def remaining(self) -> list[RemainingTask]:
        """Return the tasks that have not ended: sleepers first, in the order in which they are due."""
        found = await self._call(self._remaining)
        return sorted(found, key=lambda task: (task.due is None, task.due and task.due.timestamp()))

    async def close(self) -> None:
        """Release the claimed task, and close the connections."""
        self._closing = True
        parts = self._parts
        release_unfinished(parts.active, parts.completer)
        if parts.completer.backlog:
            with suppress(TimeoutError, SQLAlchemyError):
                async with asyncio.timeout(UNWIND_S):
                    await self._call(parts.completer.thread.run_once)
        if parts.executor.tasks:
            await asyncio.wait(parts.executor.tasks, timeout=UNWIND_S)
        parts.close()
        await parts.operations.transactions.aclose()
        if self._database_lock.acquire(
            blocking=False
        ):  # else the thread that has the lock closes the database
            self._database.close()
            self._database_lock.release()

    def ended(self, run: ActiveRun) -> None:
        """Free the slot of a run. On the loop (see RunSource)."""
        self._parts.capacity.release(monotonic() - run.started)
        self._run_ended.set()

    def next_sync(self, ended: ActiveRun) -> ActiveRun | None:
        """Report the end of a sync run to the loop. Its thread runs nothing else (see RunSource)."""
        self._parts.loop.post(self.ended, ended)
        return None

    async def _call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        call = partial(self._in_thread, partial(work, *args, **kwargs))
        return await self._parts.operations.threads.call(call)

    def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with self._database_lock:
                return work()
        finally:
            if self._closing:  # the work had waited for a database lock
                self._database.close()

    def _poll(self) -> bool:
        """Wake, sweep and claim once. Return whether there may be more to do. In a thread."""
        parts, sleepers_changed = self._parts, self._parts.sleepers_changed
        if sleepers_changed.wait(0):
            parts.waker.thread.run_once()
        parts.claimer.thread.run_once()
        if self.claimed is not None:
            return True
        parts.sweeper.thread.run_once()
        sleepers_changed.wait(0)  # consume the wake-up: the waker comes next
        pause_s = parts.waker.thread.run_once()
        parts.claimer.thread.run_once()
        return not pause_s or sleepers_changed.wait(0)

    def _store(self, run: ActiveRun) -> tuple[bool, TaskState | None]:
        """Store the run's outcome. Return whether its row was not locked, and the task's state after that."""
        if self._parts.completer.thread.run_once() is not None:
            return False, None
        model = run.model
        with self._database.autocommit() as session:
            state = session.scalar(select(model.state).where(model.id == run.claim.task_id))
        return True, None if state is None else TaskState(state)

    def _remaining(self) -> list[RemainingTask]:
        found: list[RemainingTask] = []
        for model in self._parts.registry.queues:
            due = model.available_at
            left = (
                select(model.name, model.state, due, model.attempt, model.id)
                .where(model.state.in_([state.value for state in ACTIVE]))
                .order_by(model.state.desc(), due.nulls_last())
                .limit(MAX_REMAINING - len(found))
            )
            with self._database.autocommit() as session:
                rows = session.execute(left).all()
            for name, state, at, attempt, task_id in rows:
                asleep = state == TaskState.SLEEPING
                found.append(
                    RemainingTask(
                        name, TaskState(state), at if asleep else None, attempt, model.__queue__, task_id
                    )
                )
        return found

    def _accept(self, runs: list[ActiveRun]) -> None:
        """Keep the run that the claimer has claimed. In a thread."""
        (self.claimed,) = runs
        if self._closing:  # the claim had waited for a database lock
            release_unfinished(self._parts.active, self._parts.completer)
            self._parts.completer.thread.run_once()

    def _on_error(self, _: ActiveRun, error: BaseException) -> None:
        self._error = error


_plain_engines: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()


def _plain(engine: EngineOrUrl) -> Engine:
    """Return what `engine_for` returns, but the same engine for each call: its caches survive."""
    key = getattr(engine, "sync_engine", engine)
    if not isinstance(key, Engine) or (plain := _plain_engines.get(key)) is None:
        plain = engine_for(engine)
        if isinstance(key, Engine) and plain is not key:
            plain = _plain_engines[key] = plain.execution_options(compiled_cache={})
    return plain
