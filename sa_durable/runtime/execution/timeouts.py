"""Fail runs that take longer than their handler's timeout."""

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

RECHECK_S = 0.05
"""Time until an overdue run that is finishing is checked again."""


class Timeouts:
    """A thread that fails overdue runs. A handler that blocks the event loop is failed, too.

    Args:
        active: The worker's runs.
        completer: Stores the failures.
    """

    def __init__(self, active: ActiveRuns, completer: Completer) -> None:
        self._active, self._completer = active, completer
        self._next_check = inf
        """`time.monotonic()` of the next check. inf: none is planned."""
        self.thread = PeriodicThread("timeouts", self._end_overdue)

    def watch(self, run: ActiveRun, timeout: timedelta) -> None:
        """Give a run `timeout` from now on."""
        run.timeout = timeout
        run.ends_at = monotonic() + timeout.total_seconds()
        if run.ends_at < self._next_check:
            self.thread.wakeup.set()

    def _end_overdue(self) -> float | None:
        """Fail overdue runs. Return the seconds until the next check, or None if no run has a timeout."""
        self._next_check = inf  # a `watch` during this check then wakes the thread
        now, next_end = monotonic(), inf
        for run in self._active.all():
            if run.signal is not None or run.ends_at == inf:
                continue
            if run.ends_at > now:
                next_end = min(next_end, run.ends_at)
            elif run.finishing:
                next_end = min(next_end, now + RECHECK_S)
            else:
                self._fail(run)
        self._next_check = next_end
        return None if next_end == inf else max(0.001, next_end - monotonic())

    def _fail(self, run: ActiveRun) -> None:
        claim, seconds = run.claim, run.timeout.total_seconds()
        # `finishing` before `end`, so that the executor leaves the run to the completer. Shutdown does the
        # same.
        run.finishing = True
        message = f"attempt {claim.attempt} exceeded its timeout of {seconds:g} s"
        stack = format_current_stack(run)  # before `end` cancels the handler
        if run.end(LeaseLost(f"task {claim.task_id}: {message}")):
            self._completer.submit(run, runs.failed(claim, timeout_error(message, seconds, stack)))
        else:  # another signal had ended it, and its thread left the removal to this one
            run.finishing = False
            self._active.remove([run])
