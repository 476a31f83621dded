"""How a worker ends. In a thread of its own, so that a handler which blocks the event loop can't prevent it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic

from ..errors import LeaseLost
from .runs.active import ActiveRuns
from .runs.completer import Completer, ReleaseClaim
from .threads.periodic import PeriodicThread

logger = logging.getLogger("sa_durable.worker")

POLL_S = 0.02
STORE_TIMEOUT_S = 5.0  # seconds for the last writes; beyond that leases run out, and a sweep takes over


class Shutdown:
    """Waits for the order to stop, or for the end of the worker's loop, and takes the worker down in order.

    No more claims; `stopping` gives back what waits for a slot; what runs has `patience` seconds, or until a second
    order; the rest is given back and ended; the other chores stop last, since leases count until then; `stopped`.
    """

    def __init__(
        self,
        live: ActiveRuns,
        flusher: Completer,
        claimer: PeriodicThread,
        others: Sequence[PeriodicThread],
        *,
        patience: float,
        loop_gone: Callable[[], bool],
        stopping: Callable[[], None],
        stopped: Callable[[], None],
    ) -> None:
        self._active, self._completer, self._claimer, self._others = live, flusher, claimer, others
        self._patience = patience
        self._loop_gone, self._stopping, self._stopped = loop_gone, stopping, stopped
        self.closed = Event()
        # SimpleQueue: its put is reentrant, and a signal handler may interrupt one.
        self._orders: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        Thread(target=self._run, name="sa_durable shutdown", daemon=True).start()

    def request(self) -> None:
        """The order to stop; the second one is not to wait. From any thread or signal handler."""
        self._orders.put(None)

    def _run(self) -> None:
        ordered = self._ordered(1.0)
        while not ordered and not self._loop_gone():
            ordered = self._ordered(1.0)
        try:
            self._close(self._patience if ordered else 0.0)
        finally:
            self.closed.set()
            self._stopped()

    def _ordered(self, timeout: float) -> bool:
        try:
            self._orders.get(timeout=timeout)
        except Empty:
            return False
        return True

    def _close(self, patience: float) -> None:
        deadline = monotonic() + patience
        self._claimer.stop()
        self._stopping()
        logger.info("stopping: %d tasks in hand, up to %g s for what runs", len(self._active), patience)
        while len(self._active) and monotonic() < deadline:
            if self._ordered(POLL_S):
                logger.info("stopping at once")
                break
        self.release_unfinished()
        self._claimer.join(STORE_TIMEOUT_S)
        self.release_unfinished()  # what a claim brought that was on its way
        deadline = monotonic() + STORE_TIMEOUT_S
        while (len(self._active) or self._completer.backlog) and monotonic() < deadline:
            self._ordered(POLL_S)
        if left := len(self._active):
            logger.error(
                "stopped with %d tasks neither stored nor given back: their leases will run out", left
            )
        for chore in (*self._others, self._completer.thread):
            chore.stop()
        for chore in (*self._others, self._completer.thread):
            chore.join(1.0)

    def release_unfinished(self) -> None:
        """End what runs, and hand its claims to the flusher: their tasks are ready again, no attempt burnt."""
        # Runs that were ended otherwise are nobody's to store; their handlers are left behind.
        self._active.remove(run for run in self._active.all() if run.signal is not None and not run.finishing)
        unfinished = [run for run in self._active.all() if not run.finishing and run.signal is None]
        for run in unfinished:
            # In this order: from now on it is ours to store; and once it has ended, its handler's outcome isn't taken.
            run.finishing = True
            if run.end(LeaseLost(f"task {run.claim.task_id}: its worker stops")):
                self._completer.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
        if unfinished:
            logger.warning("gave %d unfinished tasks back", len(unfinished))
