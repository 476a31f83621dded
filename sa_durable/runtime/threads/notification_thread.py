"""A thread that receives PostgreSQL's notifications on a connection of its own."""

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

CHECK_INTERVAL_S = 1.0
"""Longest time between two calls of `_check`."""


class NotificationsLost(Exception):
    """The connection works, but no notification arrives on it. A pooler may be in between."""


class NotificationThread(ABC):
    """A thread that listens on a channel and calls methods of its subclass, until it is stopped.

    A lost connection is replaced, after pauses that grow with each failure. The log has the first failure in
    a row and the recovery.

    Args:
        name: Name in the log and, after `sa_durable`, of the thread.
        database: Provides the connection. No statement but LISTEN is sent on it.
        channel: The channel to listen on.
        tuning: The pauses before a new connection.
    """

    connection: int
    """Number of the connection that listens, counted from 1. 0: none listens."""

    def __init__(self, name: str, database: Database, channel: str, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._database, self._channel, self._tuning = database, channel, tuning
        self._name = name
        self._failures = 0
        """Number of lost connections in a row."""
        self.connection = 0
        self._connections = 0
        """Number of connections so far."""
        self.thread = PeriodicThread(name, self._listen)

    @abstractmethod
    def _on_connected(self) -> None:
        """Handle a new connection that listens. Notifications before it were missed."""

    @abstractmethod
    def _on_notification(self, payload: str) -> None:
        """Handle a notification."""

    def _check(self) -> None:  # noqa: B027 - a subclass may have nothing to check
        """Check that notifications arrive. Called at least every `CHECK_INTERVAL_S`.

        Raises:
            NotificationsLost: None arrives on this connection. It is replaced.
        """

    def _on_delivered(self) -> None:
        """Record that notifications arrive. The subclass calls this when it has seen one."""
        if self._failures:
            logger.info("notifications restored: %s", self._name)
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
                    for payload in _received(connection):
                        self._on_notification(payload)
                    self._check()
                    selector.select(CHECK_INTERVAL_S)
        except (SQLAlchemyError, psycopg.Error, NotificationsLost) as error:
            return self._lost(error)
        finally:
            self.connection = 0
        return None

    def _lost(self, error: Exception) -> float:
        """Log the first failure in a row. Return the seconds until the next connection."""
        if not self._failures:
            logger.warning("notifications lost: %s (%s); polling only", self._name, _cause(error))
        self._failures += 1
        tuning = self._tuning
        silent = isinstance(error, NotificationsLost)
        longest = tuning.lost_notifications_pause_s if silent else tuning.longest_reconnect_pause_s
        return backoff(self._failures, first=tuning.first_reconnect_pause_s, longest=longest)


def _received(connection: psycopg.Connection[Any]) -> Iterator[str]:
    """Yield the payloads of the notifications that have arrived.

    Asks libpq, because psycopg's own generator waits for the socket before the first notification and after
    the last one. Meanwhile the thread that was woken waits for the GIL.
    """
    connection.pgconn.consume_input()
    while (notification := connection.pgconn.notifies()) is not None:
        yield notification.extra.decode(connection.info.encoding)


def _cause(error: Exception) -> str:
    match error:
        case NotificationsLost():
            return "none arrives; if a pooler is in between, give the worker a direct listen_url"
        case psycopg.Error():
            message = error.diag.message_primary or str(error).partition("\n")[0]
            return f"{type(error).__name__} {message}"
        case _:
            return describe_for_log(error)
