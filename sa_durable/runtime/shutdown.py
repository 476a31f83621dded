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

POLL = 0.02
STORE = 5.0  # seconds for the last writes; beyond that leases run out, and a sweep takes over


class Closer:
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
        self._live, self._flusher, self._claimer, self._others = live, flusher, claimer, others
        self._patience = patience
        self._loop_gone, self._stopping, self._stopped = loop_gone, stopping, stopped
        self.closed = Event()
        # SimpleQueue: its put is reentrant, and a signal handler may interrupt one.
        self._orders: SimpleQueue[None] = SimpleQueue()

    def start(self) -> None:
        Thread(target=self._run, name="sa_durable closer", daemon=True).start()

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
        logger.info("stopping: %d tasks in hand, up to %g s for what runs", len(self._live), patience)
        while len(self._live) and monotonic() < deadline:
            if self._ordered(POLL):
                logger.info("stopping at once")
                break
        self.give_back()
        self._claimer.join(STORE)
        self.give_back()  # what a claim brought that was on its way
        deadline = monotonic() + STORE
        while (len(self._live) or self._flusher.backlog) and monotonic() < deadline:
            self._ordered(POLL)
        if left := len(self._live):
            logger.error(
                "stopped with %d tasks neither stored nor given back: their leases will run out", left
            )
        for chore in (*self._others, self._flusher.thread):
            chore.stop()
        for chore in (*self._others, self._flusher.thread):
            chore.join(1.0)

    def give_back(self) -> None:
        """End what runs, and hand its claims to the flusher: their tasks are ready again, no attempt burnt."""
        # Runs that were ended otherwise are nobody's to store; their handlers are left behind.
        self._live.remove(run for run in self._live.all() if run.signal is not None and not run.finishing)
        unfinished = [run for run in self._live.all() if not run.finishing and run.signal is None]
        for run in unfinished:
            # In this order: from now on it is ours to store; and once it has ended, its handler's outcome isn't taken.
            run.finishing = True
            if run.end(LeaseLost(f"task {run.claim.task_id}: its worker stops")):
                self._flusher.submit(run, ReleaseClaim(run.claim.task_id, run.claim.token))
        if unfinished:
            logger.warning("gave %d unfinished tasks back", len(unfinished))
