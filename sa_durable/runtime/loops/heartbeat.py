"""Keeping the leases of live runs, from a thread and a connection of its own."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from ..connections.database import Database
from ..runs.active import ActiveRuns
from ..threads.periodic import PeriodicThread

if TYPE_CHECKING:
    pass
from ..runs.lease import extend, local_lifetime

BEATS_PER_LEASE = 4  # beats: three more chances after one that failed
MIN_AGE_FRACTION = 0.15  # of a lease: whoever is younger can wait for the next beat


class Heartbeat:
    """Extends the leases of runs, also while a handler blocks the event loop or computes, and ends those that the
    database no longer knows as ours: cancelled, or taken away."""

    def __init__(self, database: Database, live: ActiveRuns, *, lease: timedelta) -> None:
        self._database, self._active, self._lease = database, live, lease
        self._interval = lease.total_seconds() / BEATS_PER_LEASE
        self.thread = PeriodicThread("heartbeat", self._beat, longest_pause=min(1.0, self._interval / 2))

    def _beat(self) -> float:
        began = monotonic()
        old = began + local_lifetime(self._lease) - MIN_AGE_FRACTION * self._lease.total_seconds()
        failed: list[Exception] = []
        for model, runs in self._active.by_queue().items():
            due = [run for run in runs if run.signal is None and run.deadline < old]
            if due:
                try:
                    extend(self._database, model, due, self._lease)
                except Exception as error:  # noqa: BLE001 - raised below: the other queues' leases come first
                    failed.append(error)
        if failed:
            raise failed[0]
        return max(0.001, self._interval - (monotonic() - began))
