"""Decide whether a transaction of a run is executed again, and when."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import RetryTransaction, Signal
from ...services.checkpoints import AlreadySaved
from ..connections.errors import LOST_RACE, describe_for_log, is_transient, sqlstate
from ..connections.retrying import GIVE_UP_AFTER_S, backoff
from ..runs.active import ActiveRun

logger = logging.getLogger("sa_durable.worker")

MAX_TRIES = 10
"""Attempts at a transaction that loses races or its connection: its own statements may be the cause."""


class TransactionRetry:
    """The attempts at one transaction of a run.

    Enter it as a context manager around each attempt, in a loop. It passes on errors that end the
    transaction. It suppresses errors after which the transaction is to be executed again, in `pause_s`
    seconds.

    Args:
        run: The run that executes the transaction.
    """

    def __init__(self, run: ActiveRun) -> None:
        self.run = run
        self.pause_s = 0.0
        """Seconds to wait before the next attempt."""
        self.committing = False
        """Whether the COMMIT of this attempt may have been sent."""
        self.in_doubt = False
        """Whether a COMMIT was sent and no answer came.

        Then the next attempt reads the record before anything else, for as long as the run has its lease.
        After that, the next claim of the task finds the record, or doesn't.
        """
        self._pauses = self._failures = 0
        self._doubted_error: Exception | None = None
        self._connecting = False
        self._unreachable_since: float | None = None

    def __enter__(self) -> None:
        self.run.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool:
        if isinstance(error, Signal):
            self.run.end(error)
        if not isinstance(error, Exception) or (pause := self.pause_after(error)) is None:
            return False
        self.pause_s = pause
        return True

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """Mark the block that connects: its errors can't come from the application's statements."""
        self._connecting = True
        yield
        self._connecting, self._unreachable_since = False, None

    def not_committed(self) -> None:
        """Resolve the doubt: the last COMMIT had no effect.

        Raises:
            Exception: The error that caused the doubt, if the transaction has failed MAX_TRIES times.
        """
        self.in_doubt = False
        if self._doubted_error is not None and self._failures >= MAX_TRIES:
            raise self._doubted_error

    def pause_after(self, error: Exception) -> float | None:
        """Return the seconds until the next attempt; None if there is none, so that `error` is raised."""
        retryable = self._is_lost_connection(error) or _is_lost_race(error) or isinstance(error, AlreadySaved)
        if self.in_doubt:
            retry = retryable
        elif self._connecting:
            retry = retryable and self._may_wait_for_database()
        else:
            self._failures += 1
            if isinstance(error, AlreadySaved) or (self.committing and self._is_lost_connection(error)):
                self.in_doubt, self._doubted_error = True, error
            retry = retryable and (self.in_doubt or self._failures < MAX_TRIES)
        self.committing = self._connecting = False
        if not retry:
            return None
        claim = self.run.claim
        logger.info(
            "transaction failed: task %s, handler %s (%s); retrying it",
            claim.task_id,
            claim.name,
            describe_for_log(error),
        )
        self._pauses += 1
        return min(backoff(self._pauses), self.run.lease_remaining + 0.001)

    def _is_lost_connection(self, error: Exception) -> bool:
        """Return whether the connection was lost, or none could be made."""
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(
            error, OSError
        ):  # asyncpg passes on the socket's errors; the application may raise its own
            return self.in_doubt or self.committing or self._connecting
        return isinstance(error, PoolTimeoutError) or (
            (self.in_doubt or self._connecting) and is_transient(error)
        )

    def _may_wait_for_database(self) -> bool:
        now = monotonic()
        self._unreachable_since = self._unreachable_since or now
        return now - self._unreachable_since < GIVE_UP_AFTER_S


def _is_lost_race(error: Exception) -> bool:
    return isinstance(error, RetryTransaction) or sqlstate(error) in LOST_RACE
