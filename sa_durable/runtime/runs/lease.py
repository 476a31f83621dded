"""Leases of runs in this process: extending them, and writing for as long as they last."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from ...errors import Signal
from ...services import claims
from ..connections.database import Database
from .active import ActiveRun

if TYPE_CHECKING:
    from ...models import DurableTask


from collections.abc import Callable
from typing import TypeVar

from ..connections.retrying import backoff, retry_transient

MARGIN = 0.1  # of a lease: a run gives up this long before others may take its task


def local_lifetime(lease: timedelta) -> float:
    """Seconds from before a claim or extension is sent until its run is given up."""
    return lease.total_seconds() * (1 - MARGIN)


def extend(database: Database, model: type[DurableTask], runs: Sequence[ActiveRun], lease: timedelta) -> None:
    """Extend the leases of runs of a queue, now, and end those whose claims no longer stand."""
    held = {run.claim.task_id: run.claim.token for run in runs}
    sent = monotonic()
    with database.autocommit() as session:
        kept = claims.extend(session, model, held, lease=lease)
        lost = {i: token for i, token in held.items() if i not in kept}
        standing = claims.claim_status(session, model, lost) if lost else {}
    for run in runs:
        if run.claim.task_id in kept:
            run.deadline = max(run.deadline, sent + local_lifetime(lease))
        elif isinstance(signal := standing[run.claim.task_id], Signal) and not run.finishing:
            run.end(signal)  # one that is settling finds out by itself; or its end has just been stored


T = TypeVar("T")


def write_while_leased(run: ActiveRun, write: Callable[[], T]) -> T:
    """What `write` returns; it is tried again while the database is away, for as long as the run's lease may last:
    what a step did is not thrown away because a server restarted. Raises the signal that ends the run."""

    def attempt() -> T:
        run.check()  # raises once the lease may be over: that ends it
        return write()

    try:
        return retry_transient(attempt, lambda failures: min(backoff(failures), run.lease_remaining + 0.001))
    except Signal as signal:
        run.end(signal)
        raise
