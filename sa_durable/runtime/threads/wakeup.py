"""Telling a thread that there may be something to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket, socketpair
from threading import Event


class Wakeup:
    """A hint, kept until somebody waits for it. Sources: freed slots, promoted sleepers, later notifications; the
    truth is polled. Any thread may set it; one thread waits."""

    __slots__ = ("_event", "_socket", "was_set")

    def __init__(self) -> None:
        self._event = Event()
        self._socket: socket | None = None
        self.was_set = True  # what the last wait returned; True before that

    def set(self) -> None:
        if not self._event.is_set():
            self._event.set()
            self._notify()

    def wait(self, timeout: float | None) -> bool:
        """Wait for the hint, at most `timeout` seconds, and take it. False: there was none."""
        self.was_set = self._event.wait(timeout)
        if self.was_set:  # else one that has come since would be lost
            self._event.clear()
        return self.was_set

    @contextmanager
    def as_socket(self) -> Iterator[socket]:
        """A socket that can be read once there is a hint: for who waits for another socket, too."""
        hears, rings = socketpair()
        with hears, rings:
            self._socket = rings
            if self._event.is_set():
                self._notify()
            try:
                yield hears
            finally:
                self._socket = None

    def _notify(self) -> None:
        if (bell := self._socket) is not None:
            with suppress(OSError):  # closed meanwhile: nobody listens any more
                bell.send(b"!")
