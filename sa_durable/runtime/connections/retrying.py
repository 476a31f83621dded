"""Retry the library's own transactions: after which errors, after which pauses, and for how long.

The application's transactions are never retried here. A `PeriodicThread` repeats its work anyway, so it uses
only `backoff`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_delay

from .errors import describe_for_log, is_transient

T = TypeVar("T")
logger = logging.getLogger("sa_durable")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
GIVE_UP_AFTER_S = 60.0
"""How long a transaction is retried by default. By then a server has restarted, or needs an operator."""


def backoff(failures: int, *, first: float = FIRST_PAUSE_S, longest: float = LONGEST_PAUSE_S) -> float:
    """Return the seconds to wait after `failures` in a row.

    The pause doubles with each failure up to `longest`. Up to half of it is subtracted at random, so that
    processes which lost the database at the same time don't come back at the same time.
    """
    full: float = min(first * 2.0 ** min(failures - 1, 60), longest)
    return full * (1 - random.random() / 2)  # noqa: S311 - spreads load, protects nothing


def retry_transient(work: Callable[[], T], pause: Callable[[int], float]) -> T:
    """Return what `work` returns, and call it again after transient errors, without a limit of time.

    Args:
        work: One whole transaction. Raises another error when it must not be repeated any more.
        pause: Returns the seconds to wait after so many failures.
    """
    try:
        return work()  # without tenacity, whose 14 us would be a tenth of a step
    except Exception as error:  # noqa: BLE001 - raised below
        first = [error]

    def attempt() -> T:
        if first:
            raise first.pop()
        return work()

    return Retrying(**_policy(pause))(attempt)


def retry_until(what: str, work: Callable[[], T], *, limit: float = GIVE_UP_AFTER_S) -> T:
    """Return what `work` returns, and call it again after transient errors for up to `limit` seconds.

    Then the last error is raised as it is. The first failure is logged.

    Args:
        what: Name of the work in the log.
        work: One whole transaction.
        limit: Seconds from the first call to the last one.
    """
    return Retrying(**_policy(backoff), **_limited(what, limit))(work)


async def retry_until_async(
    what: str, work: Callable[[], Awaitable[T]], *, limit: float = GIVE_UP_AFTER_S
) -> T:
    """Await what `retry_until` would return."""
    return await AsyncRetrying(**_policy(backoff), **_limited(what, limit))(work)


def _policy(pause: Callable[[int], float]) -> dict[str, Any]:
    return {
        "retry": retry_if_exception(lambda error: isinstance(error, Exception) and is_transient(error)),
        "wait": lambda state: pause(state.attempt_number),
        "reraise": True,
    }


def _limited(what: str, limit: float) -> dict[str, Any]:
    def log_first_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.attempt_number == 1:
            logger.warning(
                "database error: %s (%s); retrying for up to %.3g s", what, describe_for_log(error), limit
            )

    return {"stop": stop_after_delay(limit), "before_sleep": log_first_failure}
