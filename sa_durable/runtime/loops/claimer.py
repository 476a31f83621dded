"""Background loop that claims tasks and passes them to the dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from ...services import checkpoints, claims
from ..connections.database import Database
from ..runs.active import ActiveRun, ActiveRuns
from ..runs.capacity import Capacity
from ..runs.lease import local_lifetime
from ..runs.registry import Registry
from ..threads.periodic import PeriodicThread
from ..threads.wakeup import Wakeup
from ..tuning import DEFAULT_TUNING, Tuning
from .listener import Listener
from .poll_policy import NOTIFY_PERIOD, NotifyRequest, PollPolicy
from .waker import Waker

if TYPE_CHECKING:
    from ...models import DurableTask

BATCH_ROWS = 500
"""Most tasks that one statement claims."""


class Claimer:
    """Claim as many tasks as the worker has capacity for, from each queue in turn.

    Claims while the queues have tasks. Then it waits for `poll_interval`, or shorter right after work if
    there is a listener (see `PollPolicy`). While the worker has no capacity, the claimer waits, too. The
    wake-up ends both waits.

    Args:
        worker_id: Name of the worker, which each claim stores.
        lease: How long a claim lasts if no heartbeat extends it.
        poll_interval: Longest time between two polls.
        accept: Called with claimed runs whose checkpoints are loaded. In the claimer's thread.
        tasks_ready: The claimer's wake-up.
        listener: Receives notifications. None: the worker only polls.
        waker: Checks the queues, too: its last check that found nothing to claim may take the place of a
            claim.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        active: ActiveRuns,
        capacity: Capacity,
        *,
        worker_id: str,
        lease: timedelta,
        poll_interval: timedelta,
        accept: Callable[[list[ActiveRun]], None],
        tasks_ready: Wakeup,
        listener: Listener | None,
        waker: Waker,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        self._database, self._registry, self._active, self._capacity = database, registry, active, capacity
        self._worker_id, self._lease, self._lifetime_s = worker_id, lease, local_lifetime(lease)
        self._listener, self._waker, self._accept = listener, waker, accept
        self._poll_policy = PollPolicy(poll_interval.total_seconds(), tuning)
        self._empty_since = inf
        """When the last claim was sent, if it left no ready task (time.monotonic()). inf: it left tasks."""
        self._turn = 0
        """Number of rounds. The first queue of a round changes, so that no queue starves."""
        self._incomplete: list[ActiveRun] = []
        """Claimed runs whose checkpoints are not loaded yet, after the database failed."""
        self.thread = PeriodicThread("claimer", self._run_once, wakeup=tasks_ready)

    def _run_once(self) -> float:
        """Claim until the capacity is used or the queues are empty. Return the pause until the next poll."""
        self._load_and_pass_on()
        checked = self._waker.last_empty_check
        if (
            not self.thread.wakeup.was_set
            and checked > self._empty_since
            and self._seconds_until_full_scan() > 0
        ):
            # The waker's check is as good as a claim, and it was one statement for all queues.
            self._empty_since = checked
            return self._pause(0)
        sent = monotonic()
        self._turn += 1
        # While the queues are not known to be drained, the dispatcher wakes the claimer when a slot is free.
        # So a wake-up that comes while there is no capacity is not lost.
        self._capacity.queues_drained = False
        claimed = self._claim_all()
        self._empty_since = sent if self._capacity.queues_drained and not claimed else inf
        return self._pause(claimed)

    def _claim_all(self) -> int:
        """Claim rounds of all queues. Return the number of claimed tasks."""
        queues, claimed = self._registry.queues, 0
        while (available := self._capacity.available) > 0:
            found = 0
            for i in range(len(queues)):
                model = queues[(self._turn + i) % len(queues)]
                if (limit := min(available - found, BATCH_ROWS)) > 0:
                    found += self._claim_from(model, limit)
            claimed += found
            if found < min(available, BATCH_ROWS):
                self._capacity.queues_drained = True
                break
        return claimed

    def _pause(self, claimed: int) -> float:
        """Enable or disable notifications as the policy says. Return the seconds until the next poll."""
        listener, drained = self._listener, self._capacity.queues_drained
        poll = self._poll_policy.after_claims(
            monotonic(),
            found=claimed,
            available=drained,
            connection=listener.connection if listener else 0,
            received=listener.received if listener else 0,
        )
        if listener and poll.notify_request is NotifyRequest.ENABLE:
            if not listener.enable(NOTIFY_PERIOD):
                self._poll_policy.enabling_failed(monotonic())
            self._empty_since = inf  # only a claim finds what was spawned before notifications were enabled
        if listener and poll.notify_request is NotifyRequest.DISABLE:
            listener.disable()
        return min(poll.pause_s, self._seconds_until_full_scan()) if drained else poll.pause_s

    def _claim_from(self, model: type[DurableTask], limit: int) -> int:
        """Claim up to `limit` tasks of one queue. Return the number of claimed tasks."""
        names = self._registry.names(model)
        if not names:
            return 0
        sent = monotonic()
        with self._database.autocommit() as session:
            claimed = claims.claim(
                session,
                model,
                names=names,
                worker=self._worker_id,
                lease=self._lease,
                limit=limit,
                watermark=self._registry.watermark(model),
            )
        if claimed:
            runs = [ActiveRun(model, claim, sent + self._lifetime_s) for claim in claimed]
            self._capacity.reserve(len(runs))
            self._active.add(runs)
            self._incomplete = runs
            self._load_and_pass_on()
        return len(claimed)

    def _seconds_until_full_scan(self) -> float:
        """Return the seconds until the next full scan is due for any queue, inf if none is pending."""
        return min(self._registry.watermark(model).full_scan_due_in() for model in self._registry.queues)

    def _load_and_pass_on(self) -> None:
        """Load the checkpoints of runs that were claimed before, and pass all claimed runs on."""
        runs, resumed = self._incomplete, [run for run in self._incomplete if run.claim.resumed]
        if resumed:
            self._load_checkpoints(resumed[0].model, resumed)
        if runs:
            self._incomplete = []
            self._accept(runs)

    def _load_checkpoints(self, model: type[DurableTask], resumed: Sequence[ActiveRun]) -> None:
        with self._database.autocommit() as session:
            saved = checkpoints.load(session, model, [run.claim.task_id for run in resumed])
        for run in resumed:
            run.checkpoints = saved[run.claim.task_id]
