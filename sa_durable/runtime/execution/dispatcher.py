"""Queue of claimed runs that wait for a free handler slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic

from ..runs.active import ActiveRun
from ..runs.capacity import Capacity
from ..threads.event_loop import EventLoopHandle
from ..threads.wakeup import Wakeup
from .executor import RunSource

MAX_WAIT_S = 1.0
"""How long a claimed run may wait for a slot before its task is given back to other workers."""


class Dispatcher:
    """Start claimed runs, in the order of their claims, as soon as a handler slot is free.

    Async handlers start on the event loop. A thread that has run a sync handler takes the next run itself, if
    its handler is sync, too: two hops to the loop and back cost several times what a short handler takes.

    Args:
        capacity: The worker's handler slots.
        start: Starts a run. Called on the loop.
        is_sync: Whether a run has a sync handler.
        release: Gives back the claim of a run that never started.
        loop: The loop on which runs start.
        tasks_ready: The claimer's wake-up. Set when there is capacity for more, and the queues may have more.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        start: Callable[[ActiveRun, RunSource], None],
        is_sync: Callable[[ActiveRun], bool],
        release: Callable[[ActiveRun], None],
        loop: EventLoopHandle,
        tasks_ready: Wakeup,
    ) -> None:
        self._capacity, self._start, self._is_sync = capacity, start, is_sync
        self._release, self._loop, self._tasks_ready = release, loop, tasks_ready
        self._waiting: deque[ActiveRun] = deque()
        """Runs without a slot. With `start` and `release` of the capacity under `_lock`."""
        self._lock = Lock()
        self._stopping = False

    def accept_threadsafe(self, runs: Sequence[ActiveRun]) -> None:
        """Have the loop accept runs. From any thread."""
        self._loop.post(self.accept, runs)

    def accept(self, runs: Sequence[ActiveRun]) -> None:
        """Queue runs and start those that have a slot. On the loop."""
        now = monotonic()
        for run in runs:
            run.started = now
        with self._lock:
            self._waiting.extend(runs)
        self.dispatch()

    def dispatch(self) -> None:
        """Start runs while there are free slots. On the loop."""
        if self._stopping:
            self._release_waiting()
        while (run := self._next()) is not None:
            self._start(run, self)

    def ended(self, run: ActiveRun) -> None:
        """Free the slot of an async run, and start the next ones. On the loop."""
        self._free_slot(run)
        self.dispatch()
        self._wake_claimer()

    def next_sync(self, ended: ActiveRun) -> ActiveRun | None:
        """Free the slot of a sync run, and return the sync run that its thread takes next. In that thread."""
        self._free_slot(ended)
        following = self._next(sync_only=True)
        if following is None and self._waiting:
            self._loop.post(self.dispatch)
        self._wake_claimer()
        return following

    def stop(self) -> None:
        """Start no more runs, and give back those that wait. From any thread: the loop may be closed."""
        self._stopping = True
        self._release_waiting()

    def release_stale(self) -> None:
        """Give back runs that have waited too long for a slot."""
        with self._lock:
            age = monotonic() - self._waiting[0].started if self._waiting else 0.0
        if age > MAX_WAIT_S and self._capacity.adaptive:
            self._capacity.release_stale(age)
            self._release_waiting()

    def _next(self, *, sync_only: bool = False) -> ActiveRun | None:
        with self._lock:
            if (
                self._stopping
                or not self._waiting
                or self._capacity.running >= self._capacity.concurrency
                or (sync_only and not self._is_sync(self._waiting[0]))
            ):
                return None
            self._capacity.start()
            return self._waiting.popleft()

    def _free_slot(self, run: ActiveRun) -> None:
        with self._lock:
            self._capacity.release(monotonic() - run.started)

    def _wake_claimer(self) -> None:
        if self._capacity.claimable:
            self._tasks_ready.set()

    def _release_waiting(self) -> None:
        with self._lock:
            released = list(self._waiting)
            self._waiting.clear()
            for _ in released:
                self._capacity.release()
        for run in released:
            self._release(run)
