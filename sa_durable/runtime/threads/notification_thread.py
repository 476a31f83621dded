"""A connection that listens, and does nothing else."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from selectors import EVENT_READ, DefaultSelector
from typing import Any

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from ..connections.database import Database
from ..connections.errors import describe_for_log
from ..connections.retrying import backoff
from ..tuning import DEFAULT_TUNING, Tuning
from .periodic import PeriodicThread

logger = logging.getLogger("sa_durable.worker")

CHECK_INTERVAL_S = 1.0  # seconds between checks


class NotificationsLost(Exception):
    """The connection looks well, and nothing arrives on it."""


class NotificationThread(ABC):
    """Hears what is notified on a channel, in a thread of its own, until that is stopped. A connection that is lost is
    followed by another one, after pauses that grow; the loss is logged once, and the return."""

    def __init__(self, name: str, database: Database, channel: str, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._database, self._channel, self._tuning = database, channel, tuning
        self._name = name
        self._failures = 0  # in a row
        self.connection = 0  # the number of the one that listens; 0: none
        self._connections = 0
        self.thread = PeriodicThread(name, self._listen)

    @abstractmethod
    def _on_connected(self) -> None:
        """A new connection listens: what was notified before it was missed."""

    @abstractmethod
    def _on_notification(self, payload: str) -> None: ...

    def _check(self) -> None:  # noqa: B027 - there may be nothing to check
        """Called every TICK. Raises Deaf."""

    def _on_delivered(self) -> None:
        """Notifications have been seen to arrive."""
        if self._failures:
            logger.info("%s: notifications arrive again", self._name)
            self._failures = 0

    def _listen(self) -> float | None:
        try:
            with (
                self._database.own_connection() as connection,
                self.thread.wakeup.as_socket() as stop,
                DefaultSelector() as selector,
            ):
                for readable in (connection, stop):
                    selector.register(readable, EVENT_READ)
                connection.execute(f"LISTEN {self._channel}")
                self._connections += 1
                self.connection = self._connections
                self._on_connected()
                while not self.thread.stopping:
                    for payload in _arrived(connection):
                        self._on_notification(payload)
                    self._check()
                    selector.select(CHECK_INTERVAL_S)
        except (SQLAlchemyError, psycopg.Error, NotificationsLost) as error:
            return self._lost(error)
        finally:
            self.connection = 0
        return None

    def _lost(self, error: Exception) -> float:
        """Returns the seconds until the next try."""
        if not self._failures:
            logger.warning("%s: %s; polling meanwhile", self._name, _explain(error))
        self._failures += 1
        tuning = self._tuning
        silent = isinstance(error, NotificationsLost)
        longest = tuning.lost_notifications_pause_s if silent else tuning.longest_reconnect_pause_s
        return backoff(self._failures, first=tuning.first_reconnect_pause_s, longest=longest)


def _arrived(connection: psycopg.Connection[Any]) -> Iterator[str]:
    """The payloads of what has been notified. Straight from libpq: psycopg's own generator waits for the socket once more, and
    after the last one again, while whoever was woken waits for the GIL."""
    connection.pgconn.consume_input()
    while (notification := connection.pgconn.notifies()) is not None:
        yield notification.extra.decode(connection.info.encoding)


def _explain(error: Exception) -> str:
    match error:
        case NotificationsLost():
            return "notifications don't arrive (through a pooler, give a direct listen_url)"
        case psycopg.Error():
            said = error.diag.message_primary or str(error).partition("\n")[0]
            return f"{type(error).__name__} {said}"
        case _:
            return describe_for_log(error)
