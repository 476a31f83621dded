"""When the machine itself stood still: a thread that wants to run every few milliseconds, and notes how late it was."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from threading import Event, Thread

NOTICED = 0.1  # seconds


class Pulse:
    def __init__(self, every: float = 0.02) -> None:
        self.longest = 0.0
        """Seconds that it came too late, at most."""
        self._late: list[
            tuple[float, float]
        ] = []  # from and until when, by the clock that the database has too
        self._every, self._over = every, Event()
        self._thread = Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        due = time.monotonic() + self._every
        while not self._over.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            self.longest = max(self.longest, late := now - due)
            if late > NOTICED:
                self._late.append(((until := time.time()) - late, until))
            due = now + self._every

    def stood_still(self, since: datetime, until: datetime) -> float:
        """For how many seconds, between two moments."""
        began, ended = since.astimezone(UTC).timestamp(), until.astimezone(UTC).timestamp()
        return sum(max(0.0, min(ended, end) - max(began, start)) for start, end in list(self._late))

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
