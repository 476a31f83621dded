"""The worker: claims tasks of some queues and runs their handlers until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import URL, Engine

from .connections.database import Database
from .connections.engines import EngineOrUrl, engine_for
from .connections.plan_cache import PlanCache
from .connections.schema_check import check_schema
from .context.operations import CONTEXT_THREADS, ContextOperations
from .context.steps import Steps
from .context.transactions import AsyncSessionFactory, SessionFactory, Transactions
from .context.waits import Waits
from .execution.dispatcher import Dispatcher
from .execution.executor import Executor
from .execution.timeouts import Timeouts
from .loops.claimer import Claimer
from .loops.cleaner import Cleaner
from .loops.heartbeat import Heartbeat
from .loops.listener import Listener
from .loops.sweeper import Sweeper
from .loops.waker import Waker
from .runs.active import ActiveRun, ActiveRuns
from .runs.capacity import Capacity
from .runs.completer import Completer, ReleaseClaim
from .runs.lease import local_lifetime
from .runs.registry import Registry
from .shutdown import Shutdown
from .signals import UNWIND_S, close_loop, stop_signals
from .threads.pool import DaemonThreadPool
from .threads.wakeup import Wakeup
from .worker_options import check_durations, check_numbers, check_worker_id

if TYPE_CHECKING:
    from ..models import DurableTask

logger = logging.getLogger("sa_durable.worker")


class Worker:
    """Runs the tasks of queues: `Worker(engine, [BillingTask], concurrency=20).run()`.

    `engine` is a URL, an Engine or an AsyncEngine. The worker's own statements go through connections of its own (at
    most eleven, and one for each plain handler that saves just then), at READ COMMITTED, whatever the engine's settings; it
    starts without the database and outlives its restarts. At most `concurrency` handlers run at once: async ones on the event loop, plain ones in threads. A task
    whose worker dies is run again after `lease` plus `sweep_interval` at the latest. `prefetch` is how many tasks are
    claimed ahead; by default it follows their pace. A worker runs once: make a new one to start again.

    Idle, it looks for tasks every `poll_interval`, and at once when it is notified of one (LISTEN and NOTIFY). Where
    `engine` goes through a pooler that keeps no sessions, give `listen_url`, a URL of the database itself, or
    `notify=False`, and nobody notifies.

    `ctx.transaction` and transactional handlers get their sessions from the factories (a sessionmaker, or an
    async_sessionmaker for async functions), by default plain ones on `engine`, which then needs as many connections
    as there are such handlers at once.

    Raises InvalidOptions and UnknownQueue; started, SchemaOutdated where `alembic upgrade head` has to be run first.
    """

    def __init__(
        self,
        engine: EngineOrUrl,
        queues: Iterable[type[DurableTask]],
        *,
        concurrency: int = 10,
        prefetch: int | None = None,
        lease: timedelta = timedelta(seconds=60),
        poll_interval: timedelta = timedelta(milliseconds=250),
        sweep_interval: timedelta = timedelta(seconds=5),
        shutdown_timeout: timedelta = timedelta(seconds=30),
        worker_id: str | None = None,
        notify: bool = True,
        listen_url: str | URL | None = None,
        session_factory: SessionFactory | None = None,
        async_session_factory: AsyncSessionFactory | None = None,
    ) -> None:
        check_numbers(concurrency=concurrency, prefetch=prefetch)
        check_durations(lease=lease, poll_interval=poll_interval, sweep_interval=sweep_interval)
        here = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.worker_id = check_worker_id(here if worker_id is None else worker_id)
        self.queues = Registry(queues).queues
        self.concurrency, self.lease = concurrency, lease
        source = engine_for(engine)
        registry = Registry(self.queues)
        self._plan_cache = PlanCache()
        self._databases = [self._connect(source) for _ in range(6)]
        claims, flush, beats, wakes, sweeps, steps = self._databases
        self._active, self._capacity = ActiveRuns(), Capacity(concurrency, prefetch)
        self._ready, self._asleep = Wakeup(), Wakeup()
        self._listener: Listener | None = None
        if notify:
            listens = Database(source if listen_url is None else engine_for(listen_url))
            self._databases.append(listens)
            self._listener = Listener(listens, claims, self.queues, ready=self._ready, asleep=self._asleep)
        self._completer = Completer(flush, self._active, ready=self._ready, asleep=self._asleep)
        self._timeouts = Timeouts(self._active, self._completer)
        self._heartbeat = Heartbeat(beats, self._active, lease=lease)
        self._claimer = Claimer(
            claims,
            registry,
            self._active,
            self._capacity,
            worker=self.worker_id,
            lease=lease,
            lifetime=local_lifetime(lease),
            poll_interval=poll_interval,
            hand_over=self._hand_over,
            wakeup=self._ready,
            listener=self._listener,
            nothing_ready=lambda: self._waker.nothing_ready,
        )
        self._waker = Waker(
            wakes,
            registry,
            self._capacity,
            poll_interval=poll_interval,
            ready=self._ready,
            asleep=self._asleep,
        )
        self._sweeper = Sweeper(
            sweeps, registry, sweep_interval=sweep_interval, ready=self._ready, ended=self._asleep
        )
        self._cleaner = Cleaner(sweeps, registry)
        self._operations = ContextOperations(
            Steps(steps, lease=lease, asleep=self._asleep),
            Waits(steps, asleep=self._asleep, ready=self._ready),
            Transactions(engine, session_factory, async_session_factory),
            DaemonThreadPool("sa_durable context", CONTEXT_THREADS),
            DaemonThreadPool("sa_durable transaction", concurrency),
        )
        parts = (self._waker, self._sweeper, self._cleaner, self._timeouts, self._heartbeat, self._listener)
        self._background_threads = [part.thread for part in parts if part]
        self._executor = Executor(
            registry,
            self._operations,
            self._completer,
            self._timeouts,
            self._active,
            concurrency=concurrency,
            ended=self._ended,
            next_plain=self._next_plain,
            settled=self._asleep.set,
            raised=self._raised,
        )
        self._dispatcher = Dispatcher(
            self._capacity,
            start=self._executor.start,
            plain=self._executor.is_sync,
            release=self._release,
            fill_soon=lambda: self._on_loop(self._dispatcher.dispatch),
            room=self._wake_claimer,
        )
        self._shutdown = Shutdown(
            self._active,
            self._completer,
            self._claimer.thread,
            self._background_threads,
            patience=shutdown_timeout.total_seconds(),
            loop_gone=lambda: self._loop is None or self._loop.is_closed(),
            stopping=self._stop_taking,
            stopped=self._close_connections,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed_event: asyncio.Event | None = None
        self._stopping = False
        self._tick_seconds = min(lease.total_seconds() / 20, 0.5)

    @property
    def closed(self) -> Event:
        """Set once everything that this worker held is stored or given back, and it has let go of the database."""
        return self._shutdown.closed

    def run(self) -> None:
        """Run until SIGTERM or SIGINT: then stop claiming, finish what runs for up to `shutdown_timeout`, and give the
        rest back, unharmed. A second signal gives it back at once.

        Outside the main thread no signals arrive: `request_stop` ends it. What handlers left running is cancelled,
        and not waited for.
        """
        loop = asyncio.new_event_loop()
        try:
            with stop_signals(self.request_stop):
                loop.run_until_complete(self.run_async())
        finally:
            close_loop(loop)

    async def run_async(self) -> None:
        """Run in the current event loop until `request_stop`. Cancelled, it stops as `stop` does."""
        async with self:
            assert self._closed_event is not None  # noqa: S101 - set by start
            await self._closed_event.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start claiming and running, in the current event loop. Raises SchemaOutdated, and then nothing was started."""
        if self._loop is not None:
            raise RuntimeError("this worker was started before: make a new one")
        try:
            await self._operations.threads.call(check_schema, self._databases[0], self.queues)
        except BaseException:
            self._close_connections()
            raise
        self._loop = asyncio.get_running_loop()
        self._closed_event = asyncio.Event()
        for chore in (self._completer.thread, *self._background_threads, self._claimer.thread):
            chore.start()
        self._shutdown.start()
        self._tick()
        names = ", ".join(model.__queue__ for model in self.queues)
        logger.info("worker %s runs %s, concurrency %d", self.worker_id, names, self.concurrency)

    async def stop(self) -> None:
        """Stop as on SIGTERM, and return once that is done. A second call while it lasts is a second SIGTERM."""
        if self._loop is None or self._closed_event is None:
            return
        if not self.closed.is_set():
            self.request_stop()
        await self._closed_event.wait()
        if self._executor.tasks:
            await asyncio.wait(self._executor.tasks, timeout=UNWIND_S)
        await self._operations.transactions.aclose()

    def request_stop(self) -> None:
        """Have it stop, from any thread or signal handler; a second call gives back at once what still runs."""
        self._shutdown.request()

    # From here on: the loop's thread, unless a docstring says otherwise.

    def _accept(self, runs: list[ActiveRun]) -> None:
        self._dispatcher.accept(runs)

    def _ended(self, run: ActiveRun) -> None:
        self._dispatcher.ended(run)

    def _tick(self) -> None:
        self._active.end_overdue()  # async ones; plain ones notice at their next step
        self._dispatcher.release_stale()
        if self._loop is not None and not self.closed.is_set():
            self._loop.call_later(self._tick_seconds, self._tick)

    # From here on: in any thread.

    def _next_plain(self, ended: ActiveRun) -> ActiveRun | None:
        return self._dispatcher.next_sync(ended)

    def _release(self, run: ActiveRun) -> None:
        if run.signal is None and not run.finishing:
            self._completer.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
        elif not run.finishing:  # it was cancelled, or lost, while it waited
            self._active.remove([run])

    def _wake_claimer(self) -> None:
        if not self._claimer.drained and self._capacity.available > 0:
            self._ready.set()

    def _connect(self, engine: Engine) -> Database:
        """One role's way to the database."""
        return Database(engine, plans=self._plan_cache)

    def _raised(self, run: ActiveRun, error: BaseException) -> None:
        """In any thread."""

    def _hand_over(self, runs: list[ActiveRun]) -> None:
        """In the claimer's thread."""
        self._on_loop(self._accept, runs)

    def _stop_taking(self) -> None:
        """In the closer's thread."""
        if self._listener:
            self._listener.thread.stop()
        self._dispatcher.stop()

    def _close_connections(self) -> None:
        """In the closer's thread."""
        self._executor.close()
        self._operations.close()
        for database in self._databases:
            database.close()
        if self._closed_event is not None:
            self._on_loop(self._closed_event.set)

    def _on_loop(self, call: Any, *args: Any) -> None:
        """In any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed; the closer gives back what this worker held
                self._loop.call_soon_threadsafe(call, *args)
