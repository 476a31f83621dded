"""A worker that is driven by hand, one run after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from ..runtime import Worker
from ..runtime.connections.database import Database
from ..runtime.connections.engines import EngineOrUrl, engine_for
from ..runtime.context.transactions import AsyncSessionFactory, SessionFactory
from ..runtime.runs.active import ActiveRun
from ..runtime.runs.completer import LOCKED_RETRY_S
from ..runtime.signals import UNWIND_S
from ..values import ACTIVE, TaskState

if TYPE_CHECKING:
    from ..models import DurableTask

P = ParamSpec("P")
T = TypeVar("T")

LEFT = 1000  # tasks that are listed
NEVER = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Ran:
    """A run of a handler, and what it made of its task."""

    name: str
    state: TaskState | None  # directly afterwards. Pending: it is tried again at once. None: its row is gone
    attempt: int
    queue: str
    task_id: UUID
    error: BaseException | None = field(default=None, compare=False)  # what the handler raised


@dataclass(frozen=True, slots=True)
class Left:
    """A task that is not over: it sleeps, or nobody here can run it (its name is unknown, its queue paused)."""

    name: str
    state: TaskState
    due: datetime | None  # when it wakes by itself. None: it doesn't sleep, or waits for others without end
    attempt: int
    queue: str
    task_id: UUID


class DrivenWorker(Worker):
    """All parts of a worker, but nobody's threads call them: it looks, claims and runs when it is told to.

    What it asks the database goes through the engine's own pool: a connection at a time.
    """

    def __init__(
        self,
        engine: EngineOrUrl,
        queues: Iterable[type[DurableTask]],
        session_factory: SessionFactory | None,
        async_session_factory: AsyncSessionFactory | None,
    ) -> None:
        source = _plain(engine)
        self._shared = Database(source, own_pool=source is not engine)
        self._over = asyncio.Event()
        self._error: BaseException | None = None
        self._working = Lock()  # one thread asks the database at a time
        self._gone = False
        self.in_hand: ActiveRun | None = None
        super().__init__(
            engine,
            queues,
            concurrency=1,
            prefetch=0,
            lease=NEVER,  # by this process's clock; a database's that is moved may still end it
            poll_interval=NEVER,
            sweep_interval=NEVER,
            notify=False,
            worker_id="run_until_idle",
            session_factory=session_factory,
            async_session_factory=async_session_factory,
        )
        self._databases = []  # it is closed here
        self._loop = asyncio.get_running_loop()

    async def claim_next(self) -> ActiveRun | None:
        """Do what time and events have to do, and claim a task. None: there is nothing to do."""
        more = True
        while more and self.in_hand is None:
            more = await self._call(self._look)
        return self.in_hand

    async def run_next(self, run: ActiveRun) -> Ran:
        """Run the task that was claimed, and store how that ended."""
        self._over.clear()
        self._error = None
        self._accept([run])
        while not self._over.is_set():
            left = self._timeouts.thread.run_once()  # for handlers that have a timeout
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._over.wait()
        stored, state = await self._call(self._store, run)
        while not stored:
            await asyncio.sleep(LOCKED_RETRY_S)
            stored, state = await self._call(self._store, run)
        claim, self.in_hand = run.claim, None
        return Ran(claim.name, state, claim.attempt, claim.queue, claim.task_id, self._error)

    async def left(self) -> list[Left]:
        """The tasks of the queues that are not over: sleepers first, in the order in which they are due."""
        found = await self._call(self._left)
        return sorted(found, key=lambda task: (task.due is None, task.due and task.due.timestamp()))

    async def _call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._operations.threads.call(partial(self._in_thread, partial(work, *args, **kwargs)))

    def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            with self._working:
                return work()
        finally:
            if self._gone:  # it had waited for a lock
                self._shared.close()

    async def let_go(self) -> None:
        """Give back what was claimed, and let go of the database."""
        self._gone = True
        self._shutdown.release_unfinished()
        if self._completer.backlog:
            with suppress(TimeoutError, SQLAlchemyError):
                async with asyncio.timeout(UNWIND_S):
                    await self._call(self._completer.thread.run_once)
        if self._executor.tasks:
            await asyncio.wait(self._executor.tasks, timeout=UNWIND_S)
        self._close_connections()
        await self._operations.transactions.aclose()
        if self._working.acquire(blocking=False):  # else whoever has it closes
            self._shared.close()
            self._working.release()

    def _look(self) -> bool:
        """In a thread. True: there may be more to do, even if no task was claimed."""
        if self._asleep.wait(0):  # somebody has slept, ended or emitted
            self._waker.thread.run_once()
        self._claimer.thread.run_once()
        if self.in_hand is not None:
            return True
        self._sweeper.thread.run_once()
        self._asleep.wait(0)  # the hint is taken: the waker comes next
        pause = self._waker.thread.run_once()
        self._claimer.thread.run_once()
        return not pause or self._asleep.wait(0)

    def _store(self, run: ActiveRun) -> tuple[bool, TaskState | None]:
        """Whether it is stored how the run ended (else somebody has the row locked), and the task's state then."""
        if self._completer.thread.run_once() is not None:
            return False, None
        model = run.model
        with self._shared.autocommit() as session:
            state = session.scalar(select(model.state).where(model.id == run.claim.task_id))
        return True, None if state is None else TaskState(state)

    def _left(self) -> list[Left]:
        found: list[Left] = []
        for model in self.queues:
            due = model.available_at
            left = (
                select(model.name, model.state, due, model.attempt, model.id)
                .where(model.state.in_([state.value for state in ACTIVE]))
                .order_by(model.state.desc(), due.nulls_last())
                .limit(LEFT - len(found))
            )
            with self._shared.autocommit() as session:
                rows = session.execute(left).all()
            for name, state, at, attempt, task_id in rows:
                asleep = state == TaskState.SLEEPING
                found.append(
                    Left(name, TaskState(state), at if asleep else None, attempt, model.__queue__, task_id)
                )
        return found

    def _connect(self, engine: Engine) -> Database:  # noqa: ARG002 - one of its own isn't needed
        return self._shared

    def _hand_over(self, runs: list[ActiveRun]) -> None:
        (self.in_hand,) = runs
        if self._gone:  # the claim had waited for a lock
            self._shutdown.release_unfinished()
            self._completer.thread.run_once()

    def _raised(self, run: ActiveRun, error: BaseException) -> None:  # noqa: ARG002 - there is one at a time
        self._error = error

    def _next_plain(self, ended: ActiveRun) -> ActiveRun | None:
        self._on_loop(self._ended, ended)
        return None

    def _ended(self, run: ActiveRun) -> None:
        super()._ended(run)
        self._over.set()


_plain_engines: WeakKeyDictionary[Engine, Engine] = WeakKeyDictionary()


def _plain(engine: EngineOrUrl) -> Engine:
    """As `engine_for`, but one for each engine: what it knows and has compiled is kept from call to call."""
    key = getattr(engine, "sync_engine", engine)
    if not isinstance(key, Engine) or (plain := _plain_engines.get(key)) is None:
        plain = engine_for(engine)
        if isinstance(key, Engine) and plain is not key:
            plain = _plain_engines[key] = plain.execution_options(compiled_cache={})
    return plain
