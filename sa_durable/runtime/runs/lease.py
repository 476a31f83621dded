"""Extend the leases of active runs, and retry their writes for as long as the lease lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from ...errors import Signal
from ...services import claims
from ..connections.database import Database
from ..connections.retrying import backoff, retry_transient
from .active import ActiveRun

if TYPE_CHECKING:
    from ...models import DurableTask

T = TypeVar("T")

MARGIN_FRACTION = 0.1
"""Share of a lease. A run stops writing this long before other workers may claim its task."""


def local_lifetime(lease: timedelta) -> float:
    """Return for how many seconds after a claim or an extension was sent its run may write."""
    return lease.total_seconds() * (1 - MARGIN_FRACTION)


def extend(database: Database, model: type[DurableTask], runs: Sequence[ActiveRun], lease: timedelta) -> None:
    """Extend the leases of runs of one queue. End the runs whose claim was lost or cancelled.

    Args:
        database: The connections to use.
        model: The task class of the queue.
        runs: Runs of that queue.
        lease: How long the leases last from now on.
    """
    tokens = {run.claim.task_id: run.claim.token for run in runs}
    sent_at = monotonic()
    with database.autocommit() as session:
        extended = claims.extend(session, model, tokens, lease=lease)
        lost = {task_id: token for task_id, token in tokens.items() if task_id not in extended}
        statuses = claims.claim_status(session, model, lost) if lost else {}
    for run in runs:
        if run.claim.task_id in extended:
            run.deadline = max(run.deadline, sent_at + local_lifetime(lease))
        elif isinstance(signal := statuses[run.claim.task_id], Signal) and not run.finishing:
            run.end(signal)  # a finishing run's outcome may be stored by now, which releases its claim


def write_while_leased(run: ActiveRun, write: Callable[[], T]) -> T:
    """Return what `write` returns. Retry it after transient errors for as long as the run's lease may last.

    A restart of the server thus doesn't throw away the result of a step.

    Raises:
        Signal: The run has ended, or its lease may have expired.
    """

    def attempt() -> T:
        run.check()  # raises once the lease may have expired, which ends the retries
        return write()

    try:
        return retry_transient(attempt, lambda failures: min(backoff(failures), run.lease_remaining + 0.001))
    except Signal as signal:
        run.end(signal)
        raise
