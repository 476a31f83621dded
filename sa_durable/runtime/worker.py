"""The worker: claims tasks of some queues and runs their handlers until it is stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import timedelta
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sqlalchemy import URL

from .connections.engines import EngineOrUrl
from .context.transactions import AsyncSessionFactory, SessionFactory
from .parts import build_parts
from .shutdown import Shutdown
from .signals import UNWIND_S, close_loop, stop_signals
from .tuning import DEFAULT_TUNING, Tuning
from .worker_options import WorkerOptions, default_worker_id

if TYPE_CHECKING:
    from ..models import DurableTask

logger = logging.getLogger("sa_durable.worker")

MAX_TICK_S = 0.5
"""Longest pause between two checks for runs whose lease is over, or that wait too long for a slot."""

TICKS_PER_LEASE = 20


class Worker:
    """Run the tasks of queues: `Worker(engine, [BillingTask], concurrency=20).run()`.

    The worker connects with pools of its own, at READ COMMITTED, whatever the isolation level of `engine`. It
    has at most eleven connections, and one more for each sync handler that is saving a checkpoint. It starts
    without the database and survives its restarts.

    At most `concurrency` handlers run at once: async handlers on the event loop, sync handlers in threads. A
    task whose worker dies is retried after `lease` plus `sweep_interval` at the latest.

    A worker runs once: make a new one to start again.

    Args:
        engine: A URL, an Engine or an AsyncEngine.
        queues: Task classes. The worker runs the tasks of their queues that have a handler in this process.
        concurrency: Number of handlers that run at once, from 1.
        prefetch: Number of tasks that are claimed ahead of a free handler slot, from 0. None: what the slots
            finish in 25 ms, at most 300.
        lease: How long a claim lasts unless a heartbeat extends it. Heartbeats come four times per lease. A
            longer lease survives longer outages of the database; tasks of a dead worker wait longer for their
            retry.
        poll_interval: Longest time between two polls of an idle worker. If a slot is free, a task
            starts that late at most, also without a notification. In a busy queue, a task with an old due
            time (it was released, or its `run_at` is in the past) may start two seconds later.
        sweep_interval: Longest time between two checks for expired leases of any worker, and for deadlines.
        shutdown_timeout: How long running handlers may take to end after a stop request. Then their tasks are
            released: another worker runs them again, and no attempt is consumed.
        worker_id: Name of this worker in rows and logs, 1 to 255 printable characters. None: host, process id
            and a random part. Two workers must not have the same name at the same time.
        notify: Whether other processes notify this worker of new tasks, events and ended tasks (LISTEN and
            NOTIFY) while it is idle. False: it only polls.
        listen_url: URL for the one listening connection. None: as `engine`. Needed where `engine` goes
            through a pooler that keeps no sessions, such as PgBouncer in transaction mode.
        session_factory: Makes the sessions of `ctx.transaction` and of transactional handlers in sync
            handlers, such as a sessionmaker. None: plain sessions on `engine`, which needs a connection for
            each such handler.
        async_session_factory: The same for async handlers, such as an async_sessionmaker.
        _tuning: For the library's own tests.

    Raises:
        InvalidOptions: an option has the wrong type or is out of range.
        UnknownQueue: `queues` is empty, or one of them is no task class with a queue.
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
        _tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        options = WorkerOptions(
            worker_id=default_worker_id() if worker_id is None else worker_id,
            concurrency=concurrency,
            prefetch=prefetch,
            lease=lease,
            poll_interval=poll_interval,
            sweep_interval=sweep_interval,
            notify=notify,
            listen_url=listen_url,
        )
        self.parts = build_parts(
            engine,
            queues,
            options,
            session_factory=session_factory,
            async_session_factory=async_session_factory,
            tuning=_tuning,
        )
        """The parts of the worker, for tests and debugging. Any release may change them."""
        self.worker_id, self.queues = options.worker_id, self.parts.registry.queues
        self.concurrency, self.lease = concurrency, lease
        self._shutdown = Shutdown(
            self.parts.active,
            self.parts.completer,
            self.parts.claimer.thread,
            self.parts.background_threads,
            self.parts.loop,
            shutdown_timeout_s=shutdown_timeout.total_seconds(),
            stop_accepting=self.parts.stop_accepting,
            close=self._close,
        )
        self._closed_event = asyncio.Event()
        self._tick_s = min(lease.total_seconds() / TICKS_PER_LEASE, MAX_TICK_S)

    @property
    def closed(self) -> Event:
        """Set once everything that this worker held is stored or released. Connections close after that."""
        return self._shutdown.closed

    def run(self) -> None:
        """Run until SIGTERM or SIGINT, in an event loop of its own.

        On the first signal the worker stops claiming, and running handlers have `shutdown_timeout` to end.
        Then, or on a second signal, it releases the tasks that are left. Handlers that still run are
        cancelled, and not waited for.

        Outside the main thread no signals arrive: call `request_stop`.
        """
        loop = asyncio.new_event_loop()
        try:
            with stop_signals(self.request_stop):
                loop.run_until_complete(self.run_async())
        finally:
            close_loop(loop)

    async def run_async(self) -> None:
        """Run in the current event loop until `request_stop`. If it is cancelled, it stops as `stop` does."""
        async with self:
            await self._closed_event.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start claiming tasks and running handlers, in the current event loop.

        Raises:
            SchemaOutdated: the database needs `alembic upgrade head`. Nothing was started.
            RuntimeError: the worker was started before.
        """
        if self.parts.loop.attached:
            raise RuntimeError("this worker was started before: make a new one")
        try:
            await self.parts.check_schema()
        except BaseException:
            self.parts.close()
            raise
        self.parts.loop.attach()
        background = self.parts.background_threads
        for thread in (self.parts.completer.thread, *background, self.parts.claimer.thread):
            thread.start()
        self._shutdown.start()
        self._tick()
        names = ", ".join(model.__queue__ for model in self.queues)
        logger.info("worker started: %s, queues %s, concurrency %d", self.worker_id, names, self.concurrency)

    async def stop(self) -> None:
        """Stop as on SIGTERM, and return once that is done. A second call meanwhile is a second SIGTERM."""
        if not self.parts.loop.attached:
            return
        if not self.closed.is_set():
            self.request_stop()
        await self._closed_event.wait()
        if self.parts.executor.tasks:
            await asyncio.wait(self.parts.executor.tasks, timeout=UNWIND_S)
        await self.parts.operations.transactions.aclose()

    def request_stop(self) -> None:
        """Request a stop, from any thread or signal handler. A second call releases unfinished tasks."""
        self._shutdown.request()

    def _tick(self) -> None:
        """End runs whose lease is over, and give back runs that have waited too long. On the loop."""
        # Async handlers are cancelled. Sync handlers notice at their next step.
        self.parts.active.end_overdue()
        self.parts.dispatcher.release_stale()
        if not self.closed.is_set():
            asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _close(self) -> None:
        """Close threads and connections, and let `run_async` and `stop` return. In the shutdown's thread."""
        self.parts.close()
        self.parts.loop.post(self._closed_event.set)
