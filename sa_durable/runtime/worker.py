"""The worker: claims tasks of some queues and runs their handlers until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import InvalidOptions, LeaseLost
from .claims import Claimer
from .closing import Closer
from .database import Database, EngineOrUrl, engine_for
from .execute import Executor
from .flush import Flusher, Released
from .heartbeat import Heartbeat, lifetime
from .live import Live, LiveRun
from .registry import Registry
from .slots import Slots
from .steps import Steps
from .sweeper import Sweeper
from .wakeup import Wakeup

if TYPE_CHECKING:
    from ..models import DurableTask

logger = logging.getLogger("sa_durable.worker")

STALE = 1.0  # seconds that a fetched task may wait for a slot before others get it
UNWIND = 2.0  # seconds that cancelled handlers have for their `finally` blocks


class Worker:
    """Runs the tasks of queues: `Worker(engine, [BillingTask], concurrency=20).run()`.

    `engine` is a URL, an Engine or an AsyncEngine. The worker's own statements go through connections of its own (at
    most nine), at READ COMMITTED, whatever the engine's settings; it starts without the database and outlives its
    restarts. At most `concurrency` handlers run at once: async ones on the event loop, plain ones in threads. A task
    whose worker dies is run again after `lease` plus `sweep_interval` at the latest. `prefetch` is how many tasks are
    claimed ahead; by default it follows their pace. A worker runs once: make a new one to start again.

    Raises InvalidOptions and UnknownQueue.
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
    ) -> None:
        _check(concurrency=concurrency, prefetch=prefetch)
        _check_durations(lease=lease, poll_interval=poll_interval, sweep_interval=sweep_interval)
        self.worker_id = worker_id or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self.queues = Registry(queues).queues
        self.concurrency, self.lease = concurrency, lease
        source = engine_for(engine)
        registry = Registry(self.queues)
        self._databases = [Database(source) for _ in range(5)]
        claims, flush, beats, sweeps, steps = self._databases
        self._live, self._slots = Live(), Slots(concurrency, prefetch)
        self._ready, self._asleep = Wakeup(), Wakeup()  # LISTEN will set them too
        self._flusher = Flusher(flush, self._live, ready=self._ready, asleep=self._asleep)
        self._heartbeat = Heartbeat(beats, self._live, lease=lease)
        self._claimer = Claimer(
            claims,
            registry,
            self._live,
            self._slots,
            worker=self.worker_id,
            lease=lease,
            lifetime=lifetime(lease),
            poll_interval=poll_interval,
            hand_over=self._hand_over,
            wakeup=self._ready,
        )
        self._sweeper = Sweeper(
            sweeps,
            registry,
            poll_interval=poll_interval,
            sweep_interval=sweep_interval,
            ready=self._ready,
            asleep=self._asleep,
        )
        self._steps = Steps(steps, asleep=self._asleep)
        self._executor = Executor(
            registry, self._steps, self._flusher, self._live, concurrency=concurrency, ended=self._ended
        )
        self._closer = Closer(
            self._live,
            self._flusher,
            self._claimer.chore,
            (self._sweeper.chore, self._heartbeat.chore),
            patience=shutdown_timeout.total_seconds(),
            loop_gone=lambda: self._loop is None or self._loop.is_closed(),
            stopping=partial(self._on_loop, self._stop_filling),
            stopped=self._let_go,
        )
        self._waiting: deque[LiveRun] = deque()  # claimed, no slot yet; the loop's own
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed_here: asyncio.Event | None = None
        self._stopping = False
        self._tick_seconds = min(lease.total_seconds() / 20, 0.5)

    @property
    def closed(self) -> Event:
        """Set once everything that this worker held is stored or given back, and it has let go of the database."""
        return self._closer.closed

    def run(self) -> None:
        """Run until SIGTERM or SIGINT: then stop claiming, finish what runs for up to `shutdown_timeout`, and give the
        rest back, unharmed. A second signal gives it back at once.

        Outside the main thread no signals arrive: `request_stop` ends it. What handlers left running is cancelled,
        and not waited for.
        """
        loop = asyncio.new_event_loop()
        previous = self._catch_signals()
        try:
            loop.run_until_complete(self.run_async())
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            _wind_up(loop)

    async def run_async(self) -> None:
        """Run in the current event loop until `request_stop`. Cancelled, it stops as `stop` does."""
        async with self:
            assert self._closed_here is not None  # noqa: S101 - set by start
            await self._closed_here.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start claiming and running, in the current event loop."""
        if self._loop is not None:
            raise RuntimeError("this worker was started before: make a new one")
        self._loop = asyncio.get_running_loop()
        self._closed_here = asyncio.Event()
        for chore in (self._flusher.chore, self._heartbeat.chore, self._claimer.chore, self._sweeper.chore):
            chore.start()
        self._closer.start()
        self._tick()
        names = ", ".join(model.__queue__ for model in self.queues)
        logger.info("worker %s runs %s, concurrency %d", self.worker_id, names, self.concurrency)

    async def stop(self) -> None:
        """Stop as on SIGTERM, and return once that is done. A second call while it lasts is a second SIGTERM."""
        if self._loop is None or self._closed_here is None:
            return
        if not self.closed.is_set():
            self.request_stop()
        await self._closed_here.wait()
        if self._executor.tasks:
            await asyncio.wait(self._executor.tasks, timeout=UNWIND)

    def request_stop(self) -> None:
        """Have it stop, from any thread or signal handler; a second call gives back at once what still runs."""
        self._closer.request()

    # From here on: the loop's thread, unless a docstring says otherwise.

    def _accept(self, runs: list[LiveRun]) -> None:
        now = monotonic()
        for run in runs:
            run.started = now
        self._waiting.extend(runs)
        self._fill()

    def _stop_filling(self) -> None:
        self._stopping = True
        self._release_waiting()

    def _fill(self) -> None:
        if self._stopping:
            self._release_waiting()
        while self._waiting and self._slots.running < self.concurrency:
            self._slots.start()
            self._executor.start(self._waiting.popleft())

    def _ended(self, run: LiveRun) -> None:
        self._slots.give_back(monotonic() - run.started)
        self._fill()
        if not self._claimer.drained and self._slots.room > 0:
            self._ready.set()

    def _tick(self) -> None:
        """End async runs whose lease may be over (plain ones notice at their next step), and give back what has
        waited too long for a slot."""
        now = monotonic()
        for run in self._live.all():
            if now > run.deadline and run.signal is None and not run.settling:
                with suppress(LeaseLost):
                    run.check()
        if self._waiting and self._slots.adaptive and (age := now - self._waiting[0].started) > STALE:
            self._slots.give_back_stale(0, age)
            self._release_waiting()
        if self._loop is not None and not self.closed.is_set():
            self._loop.call_later(self._tick_seconds, self._tick)

    def _release_waiting(self) -> None:
        while self._waiting:
            run = self._waiting.popleft()
            self._slots.give_back()
            if run.signal is None and not run.settling:
                self._flusher.put(run, Released(run.claim.task_id, run.claim.token))

    def _hand_over(self, runs: list[LiveRun]) -> None:
        """In the claimer's thread."""
        self._on_loop(self._accept, runs)

    def _let_go(self) -> None:
        """In the closer's thread."""
        self._executor.close()
        self._steps.close()
        for database in self._databases:
            database.close()
        if self._closed_here is not None:
            self._on_loop(self._closed_here.set)

    def _on_loop(self, call: Any, *args: Any) -> None:
        """In any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed; the closer gives back what this worker held
                self._loop.call_soon_threadsafe(call, *args)

    def _catch_signals(self) -> dict[int, Any]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(ValueError):  # not the main thread
                previous[number] = signal.signal(number, stop)
        return previous


def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop without waiting for threads: asyncio.run would, for as long as a handler's thread hangs."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=UNWIND))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        least = 1 if name == "concurrency" else 0
        if value is None and name == "prefetch":
            continue
        if type(value) is not int or value < least:
            raise InvalidOptions(f"{name}={value!r} must be an integer from {least}")


def _check_durations(**durations: timedelta) -> None:
    for name, value in durations.items():
        if not isinstance(value, timedelta) or value <= timedelta(0):
            raise InvalidOptions(f"{name}={value!r} must be a timedelta longer than zero")
