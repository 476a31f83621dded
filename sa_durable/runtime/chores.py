"""Threads that do one thing again and again, and outlive the database's absence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from .database import explain
from .wakeup import Wakeup

logger = logging.getLogger("sa_durable.worker")

FIRST_PAUSE = 0.05


class Chore:
    """A daemon thread that calls `work` until it is stopped.

    `work` returns for how many seconds there is nothing to do (None: until the wake-up). If it raises, that is
    logged, and it is called again after a pause that doubles from 50 ms to `longest_pause`; wake-ups don't
    shorten that.
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

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; what it is doing is finished first."""
        self._stop.set()
        self.wakeup.set()

    def join(self, timeout: float) -> bool:
        """Wait for its end. False: it hasn't ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            try:
                idle = self._work()
            except Exception as error:  # the shell of a thread: whatever it is, the worker goes on
                pause = min(max(2 * pause, FIRST_PAUSE), self._longest_pause)
                if isinstance(error, SQLAlchemyError):  # whose text may quote rows
                    logger.warning("%s: %s; next try in %.2f s", self._name, explain(error), pause)
                else:
                    logger.exception("%s failed; next try in %.2f s", self._name, pause)
                self._stop.wait(pause)
            else:
                if pause:
                    logger.info("%s: works again", self._name)
                    pause = 0.0
                if idle is None or idle > 0:
                    self.wakeup.wait(idle)
