"""Claiming: as many tasks as there is room for, as soon as there is room, while there is work."""

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
from ..runs.registry import Registry
from ..threads.periodic import PeriodicThread
from ..threads.wakeup import Wakeup
from .listener import Listener
from .poll_policy import NOTIFY_PERIOD, NotifyRequest, PollPolicy

if TYPE_CHECKING:
    from ...models import DurableTask

BATCH_SIZE = 500  # tasks in one statement


class Claimer:
    """Claims from each queue in turn and hands the runs over, with the checkpoints of those that were claimed before.

    Asleep while there is no room, and when the queues had nothing for `poll_interval` (shorter ones right after work, if
    there is a listener): woken by a hint in both.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        live: ActiveRuns,
        slots: Capacity,
        *,
        worker: str,
        lease: timedelta,
        lifetime: float,  # seconds from before a claim is sent until its run is given up
        poll_interval: timedelta,
        hand_over: Callable[[list[ActiveRun]], None],
        wakeup: Wakeup,
        listener: Listener | None,
        nothing_ready: Callable[[], float],
    ) -> None:
        """`nothing_ready`: before when the last look was sent, of time.monotonic(), that found nothing to claim."""
        self._database, self._registry, self._active, self._capacity = database, registry, live, slots
        self._worker, self._lease, self._lifetime = worker, lease, lifetime
        self._listener, self._poll_policy = listener, PollPolicy(poll_interval.total_seconds())
        self._hand_over, self._nothing_ready = hand_over, nothing_ready
        # When the last claim was sent that left nothing to claim; inf: it left something
        self._nothing_since = inf
        self._turn = 0
        self._incomplete: list[ActiveRun] = []  # their checkpoints are not loaded yet
        self.drained = False  # the queues had less than there was room for
        self.thread = PeriodicThread("claimer", self._claim, wakeup=wakeup)

    def _claim(self) -> float:
        self._load_and_hand_over()
        looked = self._nothing_ready()
        if (
            not self.thread.wakeup.was_set
            and looked > self._nothing_since
            and self._seconds_until_full_scan() > 0
        ):
            # That is as good as a claim, and it was one statement for all queues.
            self._nothing_since = looked
            return self._pause(0)
        sent = monotonic()
        queues = self._registry.queues
        self._turn += 1
        self.drained = False  # unless we see it: a hint that comes while there is no room is kept this way
        claimed = 0
        while (room := self._capacity.available) > 0:
            found = 0
            for i in range(len(queues)):
                model = queues[(self._turn + i) % len(queues)]
                if (left := min(room - found, BATCH_SIZE)) > 0:
                    found += self._claim_from(model, left)
            claimed += found
            self.drained = found < min(room, BATCH_SIZE)
            if self.drained:
                break
        self._nothing_since = sent if self.drained and not claimed else inf
        return self._pause(claimed)

    def _pause(self, claimed: int) -> float:
        """For how long there is nothing to claim, unless somebody notifies us."""
        listener = self._listener
        after = self._poll_policy.after_claims(
            monotonic(),
            found=claimed,
            room=self.drained,
            connection=listener.connection if listener else 0,
            heard=listener.received if listener else 0,
        )
        if listener and after.notify_request is NotifyRequest.ENABLE:
            if not listener.enable(NOTIFY_PERIOD):
                self._poll_policy.enabling_failed(monotonic())
            self._nothing_since = inf  # who spawned before that is found by a claim
        if listener and after.notify_request is NotifyRequest.DISABLE:
            listener.disable()
        return min(after.pause, self._seconds_until_full_scan()) if self.drained else after.pause

    def _claim_from(self, model: type[DurableTask], limit: int) -> int:
        names = self._registry.names(model)
        if not names:
            return 0
        sent = monotonic()
        with self._database.autocommit() as session:
            claimed = claims.claim(
                session,
                model,
                names=names,
                worker=self._worker,
                lease=self._lease,
                limit=limit,
                watermark=self._registry.watermark(model),
            )
        if claimed:
            runs = [ActiveRun(model, claim, sent + self._lifetime) for claim in claimed]
            self._capacity.reserve(len(runs))
            self._active.add(runs)
            self._incomplete = runs
            self._load_and_hand_over()
        return len(claimed)

    def _seconds_until_full_scan(self) -> float:
        """Seconds until a queue is owed a look at everything. inf: none is."""
        return min(self._registry.watermark(model).owed() for model in self._registry.queues)

    def _load_and_hand_over(self) -> None:
        """Load what earlier claims of these tasks left, and hand them over."""
        runs, resumed = self._incomplete, [run for run in self._incomplete if run.claim.resumed]
        if resumed:
            self._load_checkpoints(resumed[0].model, resumed)
        if runs:
            self._incomplete = []
            self._hand_over(runs)

    def _load_checkpoints(self, model: type[DurableTask], resumed: Sequence[ActiveRun]) -> None:
        with self._database.autocommit() as session:
            saved = checkpoints.load(session, model, [run.claim.task_id for run in resumed])
        for run in resumed:
            run.checkpoints = saved[run.claim.task_id]
