"""From claims to handlers: what waits for a slot, and who gets the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from time import monotonic

from ..runs.active import ActiveRun
from ..runs.capacity import Capacity

MAX_WAIT_S = 1.0  # seconds that a fetched task may wait for a slot before others get it


class Dispatcher:
    """Claimed runs, in their order: one starts as soon as a slot is free.

    Async handlers start on the loop. A thread that has run a plain one takes the next one itself, if that is plain, too:
    two hops to the loop and back cost several times what a short handler does.
    """

    def __init__(
        self,
        slots: Capacity,
        *,
        start: Callable[[ActiveRun], None],  # on the loop
        plain: Callable[[ActiveRun], bool],
        release: Callable[[ActiveRun], None],  # back to the queue: it never ran
        fill_soon: Callable[[], None],  # have the loop call `fill`
        room: Callable[[], None],  # there may be
    ) -> None:
        self._slots, self._start, self._plain = slots, start, plain
        self._release, self._fill_soon, self._room = release, fill_soon, room
        self._waiting: deque[ActiveRun] = deque()  # with the slots' ends and starts, under the lock
        self._lock = Lock()
        self._stopping = False

    def accept(self, runs: Sequence[ActiveRun]) -> None:
        """On the loop."""
        now = monotonic()
        for run in runs:
            run.started = now
        with self._lock:
            self._waiting.extend(runs)
        self.dispatch()

    def dispatch(self) -> None:
        """On the loop."""
        if self._stopping:
            self._release_waiting()
        while (run := self._next()) is not None:
            self._start(run)

    def ended(self, run: ActiveRun) -> None:
        """A run's slot is free. On the loop."""
        self._free_slot(run)
        self.dispatch()
        self._room()

    def next_sync(self, ended: ActiveRun) -> ActiveRun | None:
        """A plain run's slot is free: the run that its thread goes on with. In that thread."""
        self._free_slot(ended)
        following = self._next(plain=True)
        if following is None and self._waiting:
            self._fill_soon()
        self._room()
        return following

    def stop(self) -> None:
        """Start nothing any more. From any thread: the loop may be gone."""
        self._stopping = True
        self._release_waiting()

    def release_stale(self) -> None:
        """Give back what has waited too long for a slot."""
        with self._lock:
            age = monotonic() - self._waiting[0].started if self._waiting else 0.0
        if age > MAX_WAIT_S and self._slots.adaptive:
            self._slots.release_stale(age)
            self._release_waiting()

    def _next(self, *, plain: bool = False) -> ActiveRun | None:
        with self._lock:
            if (
                self._stopping
                or not self._waiting
                or self._slots.running >= self._slots.concurrency
                or (plain and not self._plain(self._waiting[0]))
            ):
                return None
            self._slots.start()
            return self._waiting.popleft()

    def _free_slot(self, run: ActiveRun) -> None:
        with self._lock:
            self._slots.release(monotonic() - run.started)

    def _release_waiting(self) -> None:
        with self._lock:
            released = list(self._waiting)
            self._waiting.clear()
            for _ in released:
                self._slots.release()
        for run in released:
            self._release(run)
