"""Background loop that turns notifications of other processes into wake-ups of this worker."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from ...services import notifications
from ...statements.notifications import CHANNEL, NotificationKind
from ..connections.database import Database
from ..connections.errors import describe_for_log
from ..threads.notification_thread import NotificationsLost, NotificationThread
from ..threads.wakeup import Wakeup
from ..tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")


class Listener(NotificationThread):
    """Set the worker's wake-ups when a process notifies its queues, and after every new connection.

    Other processes notify only queues for which notifications are enabled. `enable` also sends a notification
    to the listener itself, the echo. If the echo doesn't come back within `Tuning.echo_timeout_s`, the
    connection is closed: it is half-open, or leads through a pooler that keeps no sessions.

    Args:
        database: For the connection that listens.
        claims_database: For the statements that enable and disable notifications, in the claimer's thread.
        queues: The worker's queues.
        tasks_ready: Set when a task became claimable.
        sleepers_changed: Set when there is a new sleeper, event or ended task.
    """

    received: int
    """Number of notifications for this worker's queues."""

    def __init__(
        self,
        database: Database,
        claims_database: Database,
        queues: Sequence[type[DurableTask]],
        *,
        tasks_ready: Wakeup,
        sleepers_changed: Wakeup,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        super().__init__("listener", database, CHANNEL, tuning)
        self._claims_database, self._queues = claims_database, queues
        self._tasks_ready, self._sleepers_changed = tasks_ready, sleepers_changed
        self._echo_timeout_s = tuning.echo_timeout_s
        self.received = 0
        self._tables: AbstractSet[tuple[str, str]] = frozenset()
        """What notifications for our queues carry: the oid of the table, and the name of the queue."""
        self._listener_id = secrets.token_hex(4)
        self._echoes_sent = self._echoes_received = 0
        self._echo_deadline: float | None = None
        """When the last echo must have come back. None: no echo is missing."""

    def enable(self, period: timedelta) -> bool:
        """Enable notifications of our queues for `period`, and send an echo. Return whether that worked."""
        self._echoes_sent += 1
        try:
            with self._claims_database.transaction() as session:
                echo = f"{self._listener_id} {self._echoes_sent}"
                self._tables = notifications.enable(session, self._queues, time=period, echo=echo)
        except SQLAlchemyError as error:
            logger.info("could not enable notifications: %s; polling only", describe_for_log(error))
            return False
        if self._echo_deadline is None:  # enabling again must not postpone the deadline of an earlier echo
            self._echo_deadline = monotonic() + self._echo_timeout_s
        return True

    def disable(self) -> None:
        """Disable notifications of our queues. If that fails, they end by themselves after their period."""
        try:
            with self._claims_database.transaction() as session:
                notifications.disable(session, self._queues)
        except SQLAlchemyError as error:
            said = describe_for_log(error)
            logger.info("could not disable notifications: %s; they go on for up to a minute", said)

    def _on_connected(self) -> None:
        self._echo_deadline = None
        self._tasks_ready.set()
        self._sleepers_changed.set()

    def _on_notification(self, payload: str) -> None:
        match payload.split(" "):
            case [NotificationKind.READY | NotificationKind.WAKE as kind, oid, queue] if (
                oid,
                queue,
            ) in self._tables:
                self.received += 1
                (self._tasks_ready if kind == NotificationKind.READY else self._sleepers_changed).set()
            case [self._listener_id, number]:
                self._echoes_received = int(number)
                self._on_delivered()

    def _check(self) -> None:
        if self._echo_deadline is not None and self._echoes_received >= self._echoes_sent:
            self._echo_deadline = None
        if self._echo_deadline is not None and monotonic() > self._echo_deadline:
            raise NotificationsLost
