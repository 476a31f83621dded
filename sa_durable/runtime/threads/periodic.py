"""A daemon thread that repeats one function, and survives its errors and outages of the database."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread
from time import monotonic

from sqlalchemy.exc import SQLAlchemyError

from ...errors import RetryTransaction, SchemaOutdated
from ..connections.errors import describe_for_log
from ..connections.retrying import backoff
from .wakeup import Wakeup

logger = logging.getLogger("sa_durable.worker")

FIRST_PAUSE_S = 0.05
REMINDER_INTERVAL_S = 30.0
"""Time between two log lines about the same error."""


class PeriodicThread:
    """A daemon thread that calls `work` until it is stopped.

    After an error, `work` is called again after a pause that grows with each failure in a row. A wake-up
    doesn't shorten this pause. The log has the first failure, every change of the error, one reminder per
    `REMINDER_INTERVAL_S`, and the recovery.

    Args:
        name: Name in the log and, after `sa_durable`, of the thread.
        work: Returns the seconds to wait before the next call. None waits for a wake-up only.
        wakeup: Ends the wait before the next call.
        longest_pause: Longest pause after an error, in seconds.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        *,
        wakeup: Wakeup | None = None,
        longest_pause: float = 5,
    ) -> None:
        self.wakeup = wakeup or Wakeup()
        self._work, self._longest_pause = work, longest_pause
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"sa_durable {name}", daemon=True)
        self._failures = _FailureLog(name)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def run_once(self) -> float | None:
        """Call `work` once in the caller's thread, and return its result: for tests without threads."""
        return self._work()

    def stop(self) -> None:
        """Ask the thread to end. It finishes its current call first."""
        self._stop.set()
        self.wakeup.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called. A long call of `work` checks this."""
        return self._stop.is_set()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the thread. Return whether it has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                idle = self._work()
            except Exception as error:  # noqa: BLE001 - no error may end the thread
                self._failures.failures += 1
                pause = backoff(self._failures.failures, first=FIRST_PAUSE_S, longest=self._longest_pause)
                self._failures.failed(error, pause)
                self._stop.wait(pause)
            else:
                if self._failures.failures:
                    self._failures.recovered()
                if idle is None or idle > 0:
                    self.wakeup.wait(idle)


class _FailureLog:
    """Log the failures of a thread. An outage of minutes takes a few lines, not hundreds."""

    failures: int
    """Number of failures in a row. The thread counts them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.failures = 0
        self._last_cause = ""
        self._failing_since = self._logged_at = 0.0

    def failed(self, error: Exception, pause: float) -> None:
        """Log a failure, unless a line about the same error is recent."""
        now, cause = monotonic(), describe_for_log(error)
        if self.failures == 1:
            self._failing_since = now
        recent = now - self._logged_at < REMINDER_INTERVAL_S
        if self.failures > 1 and cause == self._last_cause and recent:
            return
        self._last_cause, self._logged_at = cause, now
        if not isinstance(error, SQLAlchemyError | SchemaOutdated | RetryTransaction):
            logger.error("thread failed: %s; next try in %.2f s", self._name, pause, exc_info=error)
        elif self.failures == 1:  # no traceback: the error's own text may quote rows
            logger.warning("thread failed: %s (%s); next try in %.2f s", self._name, cause, pause)
        else:
            logger.warning(
                "thread still failing: %s (%s, for %.0f s and %d failures); next try in %.2f s",
                self._name,
                cause,
                now - self._failing_since,
                self.failures,
                pause,
            )

    def recovered(self) -> None:
        """Log that `work` succeeds again."""
        logger.info(
            "thread recovered: %s (after %.1f s and %d failures)",
            self._name,
            monotonic() - self._failing_since,
            self.failures,
        )
        self.failures = 0
