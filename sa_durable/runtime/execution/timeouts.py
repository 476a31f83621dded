"""Ending executions whose time is over."""

from __future__ import annotations

from datetime import timedelta
from math import inf
from time import monotonic

from ...errors import LeaseLost
from ...services import runs
from ..runs.active import ActiveRun, ActiveRuns
from ..runs.completer import Completer
from ..runs.errors import timeout_error
from ..runs.stack import format_current_stack
from ..threads.periodic import PeriodicThread

RECHECK_S = 0.05  # seconds: it is just going to sleep, or to end


class Timeouts:
    """Fails executions that take longer than their handler's `timeout`. In a thread of its own: a handler that blocks
    the event loop is the one that takes too long."""

    def __init__(self, live: ActiveRuns, flusher: Completer) -> None:
        self._active, self._completer = live, flusher
        self._next = inf
        self.thread = PeriodicThread("timeouts", self._end_overdue)

    def watch(self, run: ActiveRun, timeout: timedelta) -> None:
        """From now on the execution has `timeout`."""
        run.timeout = timeout
        run.ends_at = monotonic() + timeout.total_seconds()
        if run.ends_at < self._next:
            self.thread.wakeup.set()

    def _end_overdue(self) -> float | None:
        self._next = inf  # whoever comes while we look wakes us
        now, ends = monotonic(), inf
        for run in self._active.all():
            if run.signal is not None or run.ends_at == inf:
                continue
            if run.ends_at > now:
                ends = min(ends, run.ends_at)
            elif run.finishing:
                ends = min(ends, now + RECHECK_S)
            else:
                self._end(run)
        self._next = ends
        return None if ends == inf else max(0.001, ends - monotonic())

    def _end(self, run: ActiveRun) -> None:
        claim, seconds = run.claim, run.timeout.total_seconds()
        run.finishing = True  # in this order, as the closer does
        what = f"attempt {claim.attempt} took longer than the {seconds:g} s that its handler has"
        where = format_current_stack(run)  # before it is told
        if run.end(LeaseLost(f"task {claim.task_id}: {what}")):
            self._completer.submit(run, runs.failed(claim, timeout_error(what, seconds, where)))
        else:  # it had just ended otherwise, and left it to us to forget it
            run.finishing = False
            self._active.remove([run])
