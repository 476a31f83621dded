"""Background loop that wakes tasks: due sleepers, and tasks whose events or children have ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from ...services import events, maintenance, notifications, polling
from ...services.polling import Due
from ..connections.database import Database
from ..runs.capacity import Capacity
from ..runs.registry import Registry
from ..threads.periodic import PeriodicThread
from ..threads.wakeup import Wakeup
from ..tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    from ...models import DurableTask

BATCH_ROWS = 500
"""Tasks or events that one transaction changes."""

CATCH_UP_NAMES = 1000
"""Event names of each other queue that one catch-up checks."""

LOCKED_RETRY_S = 0.02
"""Pause before tasks are tried again that other transactions had locked."""

POLL_SAFETY = 0.96
"""Share of `poll_interval`. A task that a check finds must still be claimed within the interval."""

MIN_PAUSE_S = 0.001
"""Rounding must not make the waker a busy loop."""


class Waker:
    """Promote due sleepers, resolve events and wake the tasks that wait for them, in all queues of a worker.

    Checks all queues with one statement, within `poll_interval`, when the next sleeper is due, and at its
    wake-up. Works in batches of `BATCH_ROWS` without a pause. If more tasks become claimable than this worker
    has capacity for, the waker notifies other workers.

    Every `Tuning.catch_up_interval_s` the waker also checks for ended tasks of other queues. Their workers
    may not know the queue of the waiting tasks, and then they can't resolve the waits.

    Args:
        poll_interval: Longest time between two checks.
        tasks_ready: Set when a task became claimable.
        sleepers_changed: The waker's wake-up: there may be a new sleeper, event or ended task.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        capacity: Capacity,
        *,
        poll_interval: timedelta,
        tasks_ready: Wakeup,
        sleepers_changed: Wakeup,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        self._database, self._registry, self._capacity = database, registry, capacity
        self._tasks_ready = tasks_ready
        self._interval_s = POLL_SAFETY * poll_interval.total_seconds()
        self._catch_up_interval_s = tuning.catch_up_interval_s
        self._next_catch_up = 0.0
        self._caught_up: dict[type[DurableTask], Mapping[str, str]] = {}
        """Up to which event name of each other queue the last catch-up of a queue came."""
        self.last_empty_check = -inf
        """When the last check that found nothing to claim in any queue was sent (time.monotonic())."""
        self.thread = PeriodicThread("waker", self._run_once, wakeup=sleepers_changed)

    def _run_once(self) -> float:
        """Check all queues. Return the seconds to wait before the next check."""
        began = monotonic()
        found = self._check_queues()
        pause_s = min([self._handle_queue(model, due) for model, due in found.items()])
        if began >= self._next_catch_up:
            self._catch_up(model for model, due in found.items() if due.waiting)
            self._next_catch_up = monotonic() + self._catch_up_interval_s
        return pause_s

    def _check_queues(self) -> dict[type[DurableTask], Due]:
        """Find out what is due in each queue. Wake the claimer if a task is ready."""
        sent = monotonic()
        # While claims find tasks in a queue, a check for ready tasks there is useless, and it may be slow: it
        # reads the index from its start. While the worker is idle, one check of all queues replaces the
        # claims.
        recent_s = self._interval_s / 2  # by default longer than the pauses between the claims of a stream
        watermarks = {model: self._registry.watermark(model) for model in self._registry.queues}
        idle = {model for model, mark in watermarks.items() if mark.seconds_since_found > recent_s}
        names = {model: self._registry.names(model) if model in idle else () for model in watermarks}
        with self._database.autocommit() as session:
            found = polling.due(session, names)
        if any(due.ready for due in found.values()):
            self._tasks_ready.set()
        elif len(idle) == len(watermarks):
            self.last_empty_check = sent
        return found

    def _handle_queue(self, model: type[DurableTask], due: Due) -> float:
        """Do what is due in one queue. Return the seconds until it needs the next check."""
        pause_s = self._interval_s
        if due.next_due is not None:
            remaining_s = due.next_due.total_seconds()
            pause_s = min(pause_s, max(MIN_PAUSE_S, remaining_s)) if remaining_s > 0 else self._promote(model)
        if due.unsettled and self._settle(model):
            pause_s = 0
        if due.settled or due.unsettled:
            pause_s = min(pause_s, self._wake(model))
        return pause_s

    def _promote(self, model: type[DurableTask]) -> float:
        """Promote one batch of due sleepers. Return the seconds until the next sleeper is due."""
        with self._database.autocommit() as session:
            promoted = maintenance.promote(session, model, limit=BATCH_ROWS)
        self._announce(model, promoted.woken)
        if promoted.woken == BATCH_ROWS:
            return 0
        if promoted.next_due is None:
            return self._interval_s
        return min(self._interval_s, max(MIN_PAUSE_S, promoted.next_due.total_seconds()))

    def _announce(self, model: type[DurableTask], woken: int) -> None:
        """Wake the claimer, and other workers if this one has no capacity for all woken tasks."""
        if woken:
            self._tasks_ready.set()
        if woken > self._capacity.available:
            with self._database.autocommit() as session:
                notifications.notify_ready(session, model)

    def _settle(self, model: type[DurableTask]) -> bool:
        """Settle one batch of events. Return whether more are left, or other queues have waiting tasks."""
        with self._database.transaction() as session:
            settled = events.settle(session, model, limit=BATCH_ROWS)
        return settled.more or settled.waiting > 0

    def _wake(self, model: type[DurableTask]) -> float:
        """Wake one batch of tasks whose waits are settled. Return the seconds until the next batch."""
        with self._database.autocommit() as session:
            woken = events.wake(session, model, limit=BATCH_ROWS)
        self._announce(model, woken)
        if woken == BATCH_ROWS:
            return 0
        with self._database.autocommit() as session:  # after the announcement: no task waits for this
            forgotten = events.forget_idle(session, model, limit=BATCH_ROWS)
        if forgotten == BATCH_ROWS:
            return 0
        # Tasks that are left were locked, or wait for more than one event.
        return LOCKED_RETRY_S if woken else self._interval_s

    def _catch_up(self, models: Iterable[type[DurableTask]]) -> None:
        """Resolve waits for ended tasks of other queues: one page of event names for each waiting queue."""
        for model in models:
            with self._database.transaction() as session:
                done = events.catch_up(session, model, self._caught_up.get(model, {}), limit=CATCH_UP_NAMES)
            self._caught_up[model] = done.after
            if done.marked:
                self.thread.wakeup.set()
