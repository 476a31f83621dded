"""Running the library's own transactions again, in one way: after which errors, after which pauses, for how long.

Callers' transactions are theirs, and nothing here ever runs one. Threads that do their work again anyway
(`chores.Chore`) take only the pauses.
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
GIVE_UP_AFTER_S = (
    60.0  # seconds without the database; a server has restarted by then, or somebody should know
)


def backoff(failures: int, *, first: float = FIRST_PAUSE_S, longest: float = LONGEST_PAUSE_S) -> float:
    """Seconds until the next try after `failures` in a row: twice as long each time up to `longest`, less up to half of
    it by chance. Those that were cut off together don't come back together."""
    full: float = min(first * 2.0 ** min(failures - 1, 60), longest)
    return full * (1 - random.random() / 2)  # noqa: S311 - spreads load, protects nothing


def retry_transient(work: Callable[[], T], pause: Callable[[int], float]) -> T:
    """What `work`, which is one whole transaction, returns: run again after errors that pass (it lost a race, or the
    database is away), until it raises something else. `pause`: seconds after so many failures."""
    try:
        return work()  # past tenacity: that takes 14 us, which a step would notice
    except Exception as error:  # noqa: BLE001 - raised below
        first = [error]

    def attempt() -> T:
        if first:
            raise first.pop()
        return work()

    return Retrying(**_policy(pause))(attempt)


def retry_until(what: str, work: Callable[[], T], *, limit: float = GIVE_UP_AFTER_S) -> T:
    """As `again`, for somebody who waits for `what`: for `limit` seconds; then the error is raised as it is. That it
    takes longer is logged, once."""
    return Retrying(**_policy(backoff), **_limited(what, limit))(work)


async def retry_until_async(
    what: str, work: Callable[[], Awaitable[T]], *, limit: float = GIVE_UP_AFTER_S
) -> T:
    """As `patiently`, awaited."""
    return await AsyncRetrying(**_policy(backoff), **_limited(what, limit))(work)


def _policy(pause: Callable[[int], float]) -> dict[str, Any]:
    return {
        "retry": retry_if_exception(lambda error: isinstance(error, Exception) and is_transient(error)),
        "wait": lambda state: pause(state.attempt_number),
        "reraise": True,
    }


def _limited(what: str, limit: float) -> dict[str, Any]:
    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and state.attempt_number == 1:
            logger.warning("%s: %s; trying again for up to %.3g s", what, describe_for_log(error), limit)

    return {"stop": stop_after_delay(limit), "before_sleep": tell}
