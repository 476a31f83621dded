"""Waking tasks: sleepers that are due, and those whose events are there."""

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

if TYPE_CHECKING:
    from ...models import DurableTask

PROMOTE_LIMIT = 500
SETTLE_LIMIT = 500
WAKE_LIMIT = 500
LOCKED_RETRY_S = 0.02  # seconds until tasks are tried again that somebody had locked
CATCH_UP_INTERVAL_S = 5.0  # seconds between looks for what ended where nobody could tell our queues,
CATCH_UP_LIMIT = 1000  # and at how many names of each other queue
POLL_SAFETY = 0.96  # of the poll interval: what is found still has to be claimed within it


class Waker:
    """Looks for what there is to do in all queues, in one statement; wakes due sleepers when the earliest is due, settles
    events and wakes who waits for them; at the latest after `poll_interval`, in full batches without a pause. `ready` is
    hinted when there is something to claim, and other workers are told, if it is more than we have room for; a hint on
    `asleep` says that there may be a new sleeper or event."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        slots: Capacity,
        *,
        poll_interval: timedelta,
        ready: Wakeup,
        asleep: Wakeup,
    ) -> None:
        self._database, self._registry, self._capacity, self._ready = database, registry, slots, ready
        self._poll = POLL_SAFETY * poll_interval.total_seconds()
        self._next_catch_up = 0.0
        self._caught_up: dict[type[DurableTask], Mapping[str, str]] = {}  # up to which names
        self.nothing_ready = -inf  # of time.monotonic(): before the last look that found nothing to claim
        self.thread = PeriodicThread("waker", self._run_once, wakeup=asleep)

    def _run_once(self) -> float:
        began = monotonic()
        found = self._check_queues()
        pause = min([self._handle_queue(model, due) for model, due in found.items()])
        if began >= self._next_catch_up:
            self._catch_up(model for model, due in found.items() if due.waiting)
            self._next_catch_up = monotonic() + CATCH_UP_INTERVAL_S
        return pause

    def _check_queues(self) -> dict[type[DurableTask], Due]:
        sent = monotonic()
        # What is ready is looked for by claims alone where such a look is dear (services/watermark.py).
        fronts = {model: self._registry.watermark(model) for model in self._registry.queues}
        asked = {model for model, front in fronts.items() if front.due()}
        names = {model: self._registry.names(model) if model in asked else () for model in fronts}
        with self._database.autocommit() as session:
            found = polling.due(session, names)
        for model in asked:
            fronts[model].looked(sent, ready=found[model].ready)
        if any(due.ready for due in found.values()):
            self._ready.set()
        elif len(asked) == len(found):
            self.nothing_ready = sent
        return found

    def _handle_queue(self, model: type[DurableTask], due: Due) -> float:
        """Returns the seconds until there may be more to do in this queue."""
        pause = self._poll
        if due.next_due is not None:
            # A millisecond more than nothing: rounding must not make this a busy loop.
            left = due.next_due.total_seconds()
            pause = min(pause, max(0.001, left)) if left > 0 else self._promote(model)
        if due.unsettled and self._settle(model):
            pause = 0
        if due.settled or due.unsettled:
            pause = min(pause, self._wake(model))
        return pause

    def _promote(self, model: type[DurableTask]) -> float:
        with self._database.autocommit() as session:
            promoted = maintenance.promote(session, model, limit=PROMOTE_LIMIT)
        self._announce(model, promoted.woken)
        if promoted.woken == PROMOTE_LIMIT:
            return 0
        if promoted.next_due is None:
            return self._poll
        return min(self._poll, max(0.001, promoted.next_due.total_seconds()))

    def _announce(self, model: type[DurableTask], woken: int) -> None:
        if woken:
            self._ready.set()
        if woken > self._capacity.available:
            with self._database.autocommit() as session:
                notifications.notify_ready(session, model)

    def _settle(self, model: type[DurableTask]) -> bool:
        """True: there may be more to settle, or somebody to wake in another queue."""
        with self._database.transaction() as session:
            settled = events.settle(session, model, limit=SETTLE_LIMIT)
        return settled.more or settled.waiting > 0

    def _wake(self, model: type[DurableTask]) -> float:
        with self._database.autocommit() as session:
            woken = events.wake(session, model, limit=WAKE_LIMIT)
        self._announce(model, woken)
        if woken == WAKE_LIMIT:
            return 0
        with self._database.autocommit() as session:  # after they are told: nobody waits for this
            forgotten = events.forget_idle(session, model, limit=WAKE_LIMIT)
        if forgotten == WAKE_LIMIT:
            return 0
        return (
            LOCKED_RETRY_S if woken else self._poll
        )  # what is left was locked, or waits for more than one event

    def _catch_up(self, models: Iterable[type[DurableTask]]) -> None:
        for model in models:
            with self._database.transaction() as session:
                done = events.catch_up(session, model, self._caught_up.get(model, {}), limit=CATCH_UP_LIMIT)
            self._caught_up[model] = done.after
            if done.marked:
                self.thread.wakeup.set()
