"""How long the machine itself stood still: a thread that wants to run every few milliseconds, and notes how late it was."""

from __future__ import annotations

import time
from threading import Event, Thread


class Pulse:
    def __init__(self, every: float = 0.02) -> None:
        self.longest = 0.0
        """Seconds that it came too late, at most."""
        self._every, self._over = every, Event()
        self._thread = Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        due = time.monotonic() + self._every
        while not self._over.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            self.longest = max(self.longest, now - due)
            due = now + self._every

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
