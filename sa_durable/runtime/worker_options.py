"""Options of a worker, checked."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import URL

from ..errors import InvalidOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options that `Worker` takes, without those that are about the database's sessions.

    Raises:
        InvalidOptions: a value has the wrong type or is out of range.
    """

    worker_id: str
    """Name of the worker in rows and logs. 1 to 255 printable characters."""

    concurrency: int
    """Number of handlers that run at once."""

    prefetch: int | None
    """Number of tasks that are claimed ahead. None: as many as the pace of the runs asks for."""

    lease: timedelta
    """How long a claim lasts if no heartbeat extends it."""

    poll_interval: timedelta
    """Longest time between two polls of an idle worker."""

    sweep_interval: timedelta
    """Longest time between two checks for expired leases and deadlines."""

    notify: bool = True
    """Whether other processes notify this worker."""

    listen_url: str | URL | None = None
    """Where to listen for notifications. None: through the worker's engine."""

    def __post_init__(self) -> None:
        _check_integer("concurrency", self.concurrency, least=1)
        if self.prefetch is not None:
            _check_integer("prefetch", self.prefetch, least=0)
        for name in ("lease", "poll_interval", "sweep_interval"):
            _check_duration(name, getattr(self, name))
        _check_worker_id(self.worker_id)


def default_worker_id() -> str:
    """Return a name that no other worker has: host, process and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def _check_integer(name: str, value: int, *, least: int) -> None:
    if type(value) is not int or value < least:
        raise InvalidOptions(f"{name}={value!r} must be an integer from {least}")


def _check_duration(name: str, value: timedelta) -> None:
    if not isinstance(value, timedelta) or value <= timedelta(0):
        raise InvalidOptions(f"{name}={value!r} must be a timedelta longer than zero")


def _check_worker_id(worker_id: str) -> None:
    if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= 255 or not worker_id.isprintable():
        raise InvalidOptions(f"worker_id={worker_id!r} must be 1 to 255 printable characters")
