"""The worker's listener: hints from other processes."""

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

if TYPE_CHECKING:
    from ...models import DurableTask

logger = logging.getLogger("sa_durable.worker")

ECHO_TIMEOUT_S = 5.0  # seconds until a notification of our own must have come back


class Listener(NotificationThread):
    """Hints `ready` and `asleep` when somebody notifies the worker's queues, and once after every new connection. Nobody
    notifies who wasn't asked to.

    Each time we ask, a notification of our own is sent, too. A connection that doesn't bring it back is given up: it is
    half-open, or goes through a pooler that keeps no sessions.
    """

    def __init__(
        self,
        database: Database,
        asking: Database,
        queues: Sequence[type[DurableTask]],
        *,
        ready: Wakeup,
        asleep: Wakeup,
    ) -> None:
        super().__init__("listener", database, CHANNEL)
        self._asking, self._queues = asking, queues
        self._ready, self._asleep = ready, asleep
        self.received = 0  # hints that were for us
        self._ours: AbstractSet[tuple[str, str]] = frozenset()  # what hints for our queues say
        self._me = secrets.token_hex(4)
        self._sent = self._returned = 0  # echoes
        self._deadline: float | None = None  # for all of them to have returned

    def enable(self, time: timedelta) -> bool:
        """Have whoever has something for our queues notify us, for `time`. False: that didn't work; it is logged."""
        self._sent += 1
        try:
            with self._asking.transaction() as session:
                echo = f"{self._me} {self._sent}"
                self._ours = notifications.enable(session, self._queues, time=time, echo=echo)
        except SQLAlchemyError as error:
            logger.info("nobody is asked for notifications: %s", describe_for_log(error))
            return False
        if self._deadline is None:  # else an earlier one is still out: asking again must not put that off
            self._deadline = monotonic() + ECHO_TIMEOUT_S
        return True

    def disable(self) -> None:
        """Nobody need notify us now. If that can't be said, they do for a while."""
        try:
            with self._asking.transaction() as session:
                notifications.disable(session, self._queues)
        except SQLAlchemyError as error:
            logger.info("notifications can't be called off: %s", describe_for_log(error))

    def _on_connected(self) -> None:
        self._deadline = None
        self._ready.set()
        self._asleep.set()

    def _on_notification(self, payload: str) -> None:
        match payload.split(" "):
            case [NotificationKind.READY | NotificationKind.WAKE as kind, oid, queue] if (
                oid,
                queue,
            ) in self._ours:
                self.received += 1
                (self._ready if kind == NotificationKind.READY else self._asleep).set()
            case [self._me, number]:
                self._returned = int(number)
                self._on_delivered()

    def _check(self) -> None:
        if self._deadline is not None and self._returned >= self._sent:
            self._deadline = None
        if self._deadline is not None and monotonic() > self._deadline:
            raise NotificationsLost
