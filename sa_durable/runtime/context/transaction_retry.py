"""How often a transaction is run again, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import RetryTransaction
from ...services.checkpoints import AlreadySaved
from ..connections.errors import LOST_RACE, describe_for_log, is_transient, sqlstate
from ..connections.retrying import GIVE_UP_AFTER_S, backoff
from ..runs.active import ActiveRun

logger = logging.getLogger("sa_durable.worker")

MAX_TRIES = (
    10  # of a transaction that lost a race with others, or its connection: its own statements may be why
)


class TransactionRetry:
    """The tries of one transaction of a run.

    `in_doubt`: a COMMIT was sent and no answer came. That is found out before anything else, for as long as the run
    has its lease: whoever has the task after that finds the record, or doesn't.
    """

    def __init__(self, run: ActiveRun) -> None:
        self.run = run
        self._pauses = self._failures = 0
        self._error: Exception | None = None
        self._connecting = False
        self._since: float | None = None  # there is no connection
        self.committing = self.in_doubt = False

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Nothing of the application's has run yet: an error in here is none of its own."""
        self._connecting = True
        yield
        self._connecting, self._since = False, None

    def not_committed(self) -> None:
        """The doubt is over. Raises what has caused it, if that has happened often enough."""
        self.in_doubt = False
        if self._error is not None and self._failures >= MAX_TRIES:
            raise self._error

    def pause_after(self, error: Exception) -> float | None:
        """Seconds until the next try; None: there is none, the error is for the application to see."""
        passes = self._lost(error) or _raced(error) or isinstance(error, AlreadySaved)
        if self.in_doubt:
            again = passes
        elif self._connecting:
            again = passes and self._patient()
        else:
            self._failures += 1
            if isinstance(error, AlreadySaved) or (self.committing and self._lost(error)):
                self.in_doubt, self._error = True, error
            again = passes and (self.in_doubt or self._failures < MAX_TRIES)
        self.committing = self._connecting = False
        if not again:
            return None
        claim = self.run.claim
        logger.info(
            "task %s (%s): a transaction is run again: %s", claim.task_id, claim.name, describe_for_log(error)
        )
        self._pauses += 1
        return min(backoff(self._pauses), self.run.lease_remaining + 0.001)

    def _lost(self, error: Exception) -> bool:
        """Whether the connection is, or there never was one."""
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(error, OSError):  # asyncpg passes on what the socket raises, and so may the application
            return self.in_doubt or self.committing or self._connecting
        return isinstance(error, PoolTimeoutError) or (
            (self.in_doubt or self._connecting) and is_transient(error)
        )

    def _patient(self) -> bool:
        now = monotonic()
        self._since = self._since or now
        return now - self._since < GIVE_UP_AFTER_S  # without a connection to begin on


def _raced(error: Exception) -> bool:
    return isinstance(error, RetryTransaction) or sqlstate(error) in LOST_RACE
