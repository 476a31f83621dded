"""An event that wakes one thread because there may be work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket, socketpair
from threading import Event


class Wakeup:
    """An event that stays set until one wait consumes it.

    Set for example when a handler slot is free, a sleeper was promoted or a notification arrived. Losing one
    is harmless: the database is polled anyway.

    Thread safety: any thread may call `set`; only one thread waits.
    """

    __slots__ = ("_event", "_socket", "was_set")

    was_set: bool
    """Whether the last wait was ended by `set`, and not by its timeout. True before the first wait."""

    def __init__(self) -> None:
        self._event = Event()
        self._socket: socket | None = None
        self.was_set = True

    def set(self) -> None:
        """Wake the thread that waits, or end its next wait at once."""
        if not self._event.is_set():
            self._event.set()
            self._write_to_socket()

    def wait(self, timeout: float | None) -> bool:
        """Wait for `set`, and consume it.

        Args:
            timeout: Longest time to wait, in seconds. None waits without a limit.

        Returns:
            Whether it was set.
        """
        self.was_set = self._event.wait(timeout)
        if self.was_set:  # otherwise `clear` could consume a `set` that came right after the timeout
            self._event.clear()
        return self.was_set

    @contextmanager
    def as_socket(self) -> Iterator[socket]:
        """Provide a socket that `set` makes readable, for a thread that also waits for another socket."""
        reader, writer = socketpair()
        with reader, writer:
            self._socket = writer
            if self._event.is_set():
                self._write_to_socket()
            try:
                yield reader
            finally:
                self._socket = None

    def _write_to_socket(self) -> None:
        if (writer := self._socket) is not None:
            with suppress(OSError):  # closed meanwhile: no thread waits for it any more
                writer.send(b"!")
