"""Constants of a worker that its tests change. They are no settings: any release may rename them."""

from __future__ import annotations

from dataclasses import dataclass

from ..services.watermark import FULL_SCAN_INTERVAL_S, LATE_COMMIT_S


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tuning:
    """Intervals, timeouts and batch sizes of a worker's parts. The defaults are measured (docs/decisions)."""

    full_scan_interval_s: float = FULL_SCAN_INTERVAL_S
    """Longest time between two claims that scan the whole ready index (services/watermark.py)."""

    late_commit_s: float = LATE_COMMIT_S
    """How long a spawning transaction may stay open until only a full scan finds its tasks."""

    renew_notify_after_s: float = 20.0
    """An idle worker enables notifications again after this time: a third of `NOTIFY_PERIOD`."""

    retry_notify_after_s: float = 1.0
    """A worker that missed a notification, or could not enable them, enables them again after this time."""

    echo_timeout_s: float = 5.0
    """How long the worker's own notification may take to come back before its connection counts as broken."""

    catch_up_interval_s: float = 5.0
    """Time between two checks for ended tasks of queues whose workers don't know the waiting queue."""

    beats_per_lease: int = 4
    """Heartbeats during one lease: after one that failed, three more can extend the lease."""

    min_beat_age_fraction: float = 0.15
    """Share of a lease. A lease that was extended more recently waits for the next heartbeat."""

    cleanup_interval_s: float = 60.0
    """Time between two cleanups of a worker."""

    cleanup_rest_factor: float = 100.0
    """The pause after a cleanup is at least this many times as long as the cleanup took."""

    cleanup_batch_rows: int = 500
    """Rows of a kind that one transaction deletes."""

    slow_statement_s: float = 0.005
    """A statement that takes longer counts as slow; its plan may not fit the table any more."""

    slow_total_s: float = 0.05
    """Plans are discarded after this much time in slow statements within `plan_interval_s`.

    Less is usually caused by machine load. New plans then do harm: a plan that is made on an empty queue is a
    bad one.
    """

    plan_interval_s: float = 1.0
    """Shortest time between two times that plans are discarded."""

    first_reconnect_pause_s: float = 0.05
    """Pause after the listening connection was lost. The pause doubles with each failure in a row."""

    longest_reconnect_pause_s: float = 5.0
    """Longest pause after the listening connection was lost."""

    lost_notifications_pause_s: float = 600.0
    """Longest pause after a connection on which no notification arrives, such as one through a pooler."""

    first_result_pause_s: float = 0.01
    """Pause of `wait_for` after its first poll. The pause grows by half with each poll."""

    longest_result_pause_s: float = 1.0
    """Longest pause of `wait_for` between two polls."""

    def __repr__(self) -> str:
        return "Tuning(...)"  # short, as it is a default in the signature of Worker


DEFAULT_TUNING = Tuning()
