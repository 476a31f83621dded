"""Shut a worker down, in a thread of its own: a handler that blocks the event loop can't prevent it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic

from ..errors import LeaseLost
from .runs.active import ActiveRuns
from .runs.completer import Completer, ReleaseClaim
from .threads.event_loop import EventLoopHandle
from .threads.periodic import PeriodicThread

logger = logging.getLogger("sa_durable.worker")

POLL_S = 0.02
"""Pause between two checks whether all runs are stored."""

CHECK_LOOP_S = 1.0
"""Pause between two checks whether the event loop was closed without a stop request."""

STORE_TIMEOUT_S = 5.0
"""How long the last writes may take. After that, leases of unfinished tasks expire."""

JOIN_TIMEOUT_S = 1.0
"""How long each thread may take to end."""


class Shutdown:
    """Wait for a stop request, or for the end of the event loop, and take the worker down in this order.

    1. The claimer stops, and `stop_accepting` gives back the runs that wait for a slot.
    2. Active runs have `shutdown_timeout_s` to end, or until a second stop request.
    3. Runs that are left are ended, and their claims released.
    4. The other threads stop. They come last because leases must be extended until then.
    5. `closed` is set, and `close` is called.

    Args:
        active: Runs that this worker holds.
        completer: Stores their outcomes.
        claimer: The claimer's thread.
        others: The other threads, without the completer's.
        loop: The event loop. If it was closed without a stop request, nothing is waited for.
        shutdown_timeout_s: How long active runs may take to end.
        stop_accepting: Starts no more runs, and gives back those that wait.
        close: Closes threads and connections.
    """

    closed: Event
    """Set once every outcome is stored or its claim released, or `STORE_TIMEOUT_S` is over."""

    def __init__(
        self,
        active: ActiveRuns,
        completer: Completer,
        claimer: PeriodicThread,
        others: Sequence[PeriodicThread],
        loop: EventLoopHandle,
        *,
        shutdown_timeout_s: float,
        stop_accepting: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self._active, self._completer, self._claimer, self._others = active, completer, claimer, others
        self._loop, self._shutdown_timeout_s = loop, shutdown_timeout_s
        self._stop_accepting, self._close = stop_accepting, close
        self.closed = Event()
        # SimpleQueue: its put is reentrant, and a signal handler may interrupt another put.
        self._requests: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        """Start the thread that waits for a stop request."""
        Thread(target=self._run, name="sa_durable shutdown", daemon=True).start()

    def request(self) -> None:
        """Request the shutdown. A second request means not to wait. From any thread or signal handler."""
        self._requests.put(None)

    def _run(self) -> None:
        requested = self._requested(CHECK_LOOP_S)
        while not requested and self._loop.usable:
            requested = self._requested(CHECK_LOOP_S)
        try:
            self._shut_down(self._shutdown_timeout_s if requested else 0.0)
        finally:
            self.closed.set()
            self._close()

    def _requested(self, timeout_s: float) -> bool:
        """Wait for a stop request. Return whether one came."""
        try:
            self._requests.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def _shut_down(self, timeout_s: float) -> None:
        deadline = monotonic() + timeout_s
        self._claimer.stop()
        self._stop_accepting()
        logger.info("shutting down: %d tasks held, waiting up to %g s", len(self._active), timeout_s)
        while len(self._active) and monotonic() < deadline:
            if self._requested(POLL_S):
                logger.info("shutting down at once: second stop request; unfinished tasks are released")
                break
        release_unfinished(self._active, self._completer)
        self._claimer.join(STORE_TIMEOUT_S)
        release_unfinished(self._active, self._completer)  # tasks of a claim that was under way
        deadline = monotonic() + STORE_TIMEOUT_S
        while (len(self._active) or self._completer.backlog) and monotonic() < deadline:
            self._requested(POLL_S)
        if unfinished := len(self._active):
            logger.error(
                "shut down with %d tasks unfinished; they will be retried after their lease expires",
                unfinished,
            )
        for thread in (*self._others, self._completer.thread):
            thread.stop()
        for thread in (*self._others, self._completer.thread):
            thread.join(JOIN_TIMEOUT_S)


def release_unfinished(active: ActiveRuns, completer: Completer) -> None:
    """End all active runs and release their claims: their tasks are claimable, no attempt is consumed."""
    # The outcome of a run that a signal ended is not stored. Its handler may still be running: it is left
    # behind.
    active.remove(run for run in active.all() if run.signal is not None and not run.finishing)
    unfinished = [run for run in active.all() if not run.finishing and run.signal is None]
    for run in unfinished:
        # `finishing` first: from now on this thread stores the outcome. Once `end` has returned True, the
        # handler's own outcome is not taken any more.
        run.finishing = True
        if run.end(LeaseLost(f"task {run.claim.task_id}: its worker shuts down")):
            completer.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
    if unfinished:
        logger.warning("released %d unfinished tasks; other workers can claim them", len(unfinished))
