"""Threads that do one thing again and again, and outlive the database's absence."""

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
REMINDER_INTERVAL_S = 30.0  # seconds between two log lines about the same trouble


class PeriodicThread:
    """A daemon thread that calls `work` until it is stopped.

    `work` returns for how many seconds there is nothing to do (None: until the wake-up). If it raises, it is called
    again after a pause that grows to `longest_pause`; wake-ups don't shorten that. Trouble is logged when it begins or
    changes, then every 30 seconds, and when it is over.
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
        self._name = name
        self._failures = _FailureLog(name)

    def start(self) -> None:
        self._thread.start()

    def run_once(self) -> float | None:
        """Call `work` here and now, in the caller's thread: for a worker that is driven by hand."""
        return self._work()

    def stop(self) -> None:
        """Ask it to end; what it is doing is finished first."""
        self._stop.set()
        self.wakeup.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: for work that takes long."""
        return self._stop.is_set()

    def join(self, timeout: float) -> bool:
        """Wait for its end. False: it hasn't ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                idle = self._work()
            except Exception as error:  # noqa: BLE001 - the shell of a thread: whatever it is, the worker goes on
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
    """What a chore says of failures in a row: an outage of minutes is a few lines, not hundreds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.failures = 0
        self._said = ""
        self._since = self._said_at = 0.0

    def failed(self, error: Exception, pause: float) -> None:
        now, said = monotonic(), describe_for_log(error)
        if self.failures == 1:
            self._since = now
        if self.failures > 1 and said == self._said and now - self._said_at < REMINDER_INTERVAL_S:
            return
        self._said, self._said_at = said, now
        if not isinstance(error, SQLAlchemyError | SchemaOutdated | RetryTransaction):
            logger.error("%s failed; next try in %.2f s", self._name, pause, exc_info=error)
        elif self.failures == 1:  # the text of the error itself may quote rows
            logger.warning("%s: %s; next try in %.2f s", self._name, said, pause)
        else:
            away = now - self._since
            logger.warning(
                "%s: %s, for %.0f s now; next try in %.2f s, number %d",
                self._name,
                said,
                away,
                pause,
                self.failures + 1,
            )

    def recovered(self) -> None:
        logger.info(
            "%s: works again, after %.1f s and %d failures",
            self._name,
            monotonic() - self._since,
            self.failures,
        )
        self.failures = 0
