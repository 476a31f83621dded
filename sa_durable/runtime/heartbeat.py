"""Keeping the leases of live runs, from a thread and a connection of its own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from ..errors import Signal
from ..services import leases
from .chores import Chore
from .database import Database
from .live import Live, LiveRun

if TYPE_CHECKING:
    from ..models import DurableTask

PER_LEASE = 4  # beats: three more chances after one that failed
MARGIN = 0.1  # of a lease: a run gives up this long before others may take its task
YOUNG = 0.15  # of a lease: whoever is younger can wait for the next beat


def lifetime(lease: timedelta) -> float:
    """Seconds from before a claim or extension is sent until its run is given up."""
    return lease.total_seconds() * (1 - MARGIN)


class Heartbeat:
    """Extends the leases of runs, also while a handler blocks the event loop or computes, and ends those that the
    database no longer knows as ours: cancelled, or taken away."""

    def __init__(self, database: Database, live: Live, *, lease: timedelta) -> None:
        self._database, self._live, self._lease = database, live, lease
        self._interval = lease.total_seconds() / PER_LEASE
        self.chore = Chore("heartbeat", self._beat, longest_pause=min(1.0, self._interval / 2))

    def _beat(self) -> float:
        began = monotonic()
        old = began + lifetime(self._lease) - YOUNG * self._lease.total_seconds()
        failed: list[Exception] = []
        for model, runs in self._live.by_queue().items():
            due = [run for run in runs if run.signal is None and run.deadline < old]
            if due:
                try:
                    extend(self._database, model, due, self._lease)
                except Exception as error:  # noqa: BLE001 - raised below: the other queues' leases come first
                    failed.append(error)
        if failed:
            raise failed[0]
        return max(0.001, self._interval - (monotonic() - began))


def extend(database: Database, model: type[DurableTask], runs: Sequence[LiveRun], lease: timedelta) -> None:
    """Extend the leases of runs of a queue, now, and end those whose claims no longer stand."""
    held = {run.claim.task_id: run.claim.token for run in runs}
    sent = monotonic()
    with database.once() as session:
        kept = leases.extend(session, model, held, lease=lease)
        lost = {i: token for i, token in held.items() if i not in kept}
        standing = leases.standing(session, model, lost) if lost else {}
    for run in runs:
        if run.claim.task_id in kept:
            run.deadline = max(run.deadline, sent + lifetime(lease))
        elif isinstance(signal := standing[run.claim.task_id], Signal) and not run.settling:
            run.end(signal)  # one that is settling finds out by itself; or its end has just been stored
