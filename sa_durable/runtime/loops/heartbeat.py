"""Background loop that extends the leases of this worker's runs."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from ..connections.database import Database
from ..runs.active import ActiveRuns
from ..runs.lease import extend, local_lifetime
from ..threads.periodic import PeriodicThread
from ..tuning import DEFAULT_TUNING, Tuning


class Heartbeat:
    """Extend the leases of active runs, `Tuning.beats_per_lease` times per lease.

    Ends the runs whose claims the database doesn't know any more: their tasks were cancelled, or another
    worker has claimed them. The thread and the connection serve nothing else, so that a handler which blocks
    the event loop or computes for long keeps its lease.
    """

    def __init__(
        self, database: Database, active: ActiveRuns, *, lease: timedelta, tuning: Tuning = DEFAULT_TUNING
    ) -> None:
        self._database, self._active, self._lease = database, active, lease
        self._interval_s = lease.total_seconds() / tuning.beats_per_lease
        self._min_age_s = lease.total_seconds() * tuning.min_beat_age_fraction
        self.thread = PeriodicThread(
            "heartbeat", self._run_once, longest_pause=min(1.0, self._interval_s / 2)
        )

    def _run_once(self) -> float:
        """Extend the leases that are old enough. Return the seconds until the next heartbeat."""
        began = monotonic()
        # A lease with a later deadline was extended recently: it waits for the next heartbeat.
        latest_deadline = began + local_lifetime(self._lease) - self._min_age_s
        errors: list[Exception] = []
        for model, runs in self._active.by_queue().items():
            due = [run for run in runs if run.signal is None and run.deadline < latest_deadline]
            if due:
                try:
                    extend(self._database, model, due, self._lease)
                except Exception as error:  # noqa: BLE001 - raised below, after other queues
                    errors.append(error)
        if errors:
            raise errors[0]
        return max(0.001, self._interval_s - (monotonic() - began))
