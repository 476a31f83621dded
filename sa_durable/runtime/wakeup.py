"""Telling a thread that there may be something to do."""

from __future__ import annotations

from threading import Event


class Wakeup:
    """A hint, kept until somebody waits for it. Sources: freed slots, promoted sleepers, later notifications; the
    truth is polled. Any thread may set it; one thread waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        if not self._event.is_set():
            self._event.set()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the hint, at most `timeout` seconds, and take it. False: there was none."""
        hinted = self._event.wait(timeout)
        self._event.clear()
        return hinted
