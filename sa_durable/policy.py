"""Decide what follows a failure, and which keys and options are valid. Pure: values in, values out."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from .errors import InvalidKey, InvalidOptions
from .values import Exponential, Fixed, Json, NoRetry, RetryPolicy

RESERVED_KEY_PREFIX = "~"
"""Prefix of derived keys."""
RESERVED_HEADER_PREFIX = "durable:"
"""Prefix of the library's own headers."""
KEY_LENGTH = 255
"""Longest key, in characters."""
MAX_SPAN = timedelta(days=36500)
"""Longest duration. A later date may not exist in both PostgreSQL and Python."""
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def check_header_names(headers: Mapping[str, Json]) -> None:
    """Raise InvalidOptions for a header whose name is no string or has the reserved prefix."""
    for name in headers:
        if not isinstance(name, str) or name.startswith(RESERVED_HEADER_PREFIX):
            raise InvalidOptions(
                f"header {name!r}: names are strings, and the prefix {RESERVED_HEADER_PREFIX!r} is reserved"
            )


def check_duration(name: str, value: timedelta, *, zero: bool) -> None:
    """Raise InvalidOptions for a value that is no duration of 0 (if `zero`) to 36,500 days."""
    if not isinstance(value, timedelta):
        raise InvalidOptions(f"{name}={value!r} must be a timedelta")
    if value < timedelta(0) or (not zero and not value):
        raise InvalidOptions(f"{name}={value!r} must not be negative{'' if zero else ' or zero'}")
    if value > MAX_SPAN:
        raise InvalidOptions(f"{name}={value!r} must be at most {MAX_SPAN.days} days")


def is_storable_key(key: str) -> bool:
    """Return whether a task can have this key, which may also be a derived one."""
    return isinstance(key, str) and 1 <= len(key) <= KEY_LENGTH and not _unstorable(key)


def _unstorable(key: str) -> bool:
    return "\0" in key if key.isascii() else bool(_UNSTORABLE.search(key))


def check_key(key: str) -> str:
    """Return `key` if a caller can give it to a task. Raises InvalidKey."""
    if not isinstance(key, str):
        raise InvalidKey(f"idempotency_key={key!r} must be a string")
    if not 1 <= len(key) <= KEY_LENGTH:
        raise InvalidKey(
            f"idempotency_key of {len(key)} characters: 1 to {KEY_LENGTH} are allowed. "
            "Hash a longer one yourself."
        )
    if _unstorable(key):
        raise InvalidKey(
            f"idempotency_key={key!r} contains a NUL or a lone surrogate, which PostgreSQL can't store"
        )
    if key.startswith(RESERVED_KEY_PREFIX):
        raise InvalidKey(
            f"idempotency_key={key!r}: the prefix {RESERVED_KEY_PREFIX!r} is reserved for derived keys"
        )
    return key


def check_retry(retry: RetryPolicy) -> None:
    """Raise InvalidOptions for a retry policy whose delays aren't durations."""
    match retry:
        case NoRetry():
            return
        case Fixed(delay, jitter):
            check_duration("retry.delay", delay, zero=True)
        case Exponential(base, factor, cap, jitter):
            check_duration("retry.base", base, zero=True)
            check_duration("retry.cap", cap, zero=True)
            if not 1 <= factor <= 1000:
                raise InvalidOptions(f"retry.factor={factor!r} must be from 1 to 1000")
        case _:
            raise InvalidOptions(f"retry={retry!r} must be NoRetry(), Fixed(...) or Exponential(...)")
    if not 0 <= jitter <= 1:
        raise InvalidOptions(f"retry.jitter={jitter!r} must be from 0 to 1")


def retry_to_json(retry: RetryPolicy) -> dict[str, Json]:
    """Return a retry policy as it is stored."""
    match retry:
        case NoRetry():
            return {"kind": "none"}
        case Fixed(delay, jitter):
            return {"kind": "fixed", "delay_seconds": delay.total_seconds(), "jitter": jitter}
        case Exponential(base, factor, cap, jitter):
            return {
                "kind": "exponential",
                "base_seconds": base.total_seconds(),
                "factor": factor,
                "cap_seconds": cap.total_seconds(),
                "jitter": jitter,
            }


def retry_from_json(value: Mapping[str, Json] | None) -> RetryPolicy:
    """Return the policy that `retry_to_json` stored. For None (a manually inserted row): the default one."""
    match value:
        case None:
            return Exponential()
        case {"kind": "none"}:
            return NoRetry()
        case {"kind": "fixed", "delay_seconds": delay}:
            return Fixed(timedelta(seconds=delay), value.get("jitter", 0))
        case {"kind": "exponential", "base_seconds": base, "factor": factor, "cap_seconds": cap}:
            return Exponential(
                timedelta(seconds=base), factor, timedelta(seconds=cap), value.get("jitter", 0)
            )
        case _:
            raise InvalidOptions(f"stored retry policy {value!r} is of a kind that this version doesn't know")


def retry_delay(retry: RetryPolicy, attempt: int, *, chance: float | None = None) -> timedelta | None:
    """Return the delay from the failure of `attempt` (from 1) to the next attempt, or None if there is none.

    `chance` (0 to 1) replaces the random number of the jitter.
    """
    match retry:
        case NoRetry():
            return None
        case Fixed(delay, jitter):
            full = delay.total_seconds()
        case Exponential(base, factor, cap, jitter):
            limit = cap.total_seconds()
            try:
                full = min(base.total_seconds() * factor ** (attempt - 1.0), limit)
            except OverflowError:
                full = limit if base else 0.0
    draw = random.random() if chance is None else chance  # noqa: S311 - spreads load, protects nothing
    return timedelta(seconds=min(full, MAX_SPAN.total_seconds()) * (1 - jitter * draw))


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Start another attempt after a delay."""

    delay: timedelta
    """Time from the failure to the next attempt."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail the task: no further attempt."""


Verdict: TypeAlias = RetryAfter | GiveUp


def after_failure(
    retry: RetryPolicy,
    *,
    attempt: int,
    max_attempts: int | None,
    retryable: bool = True,
    chance: float | None = None,
) -> Verdict:
    """Decide what follows the failure of `attempt`."""
    if not retryable or (max_attempts is not None and attempt >= max_attempts):
        return GiveUp()
    delay = retry_delay(retry, attempt, chance=chance)
    return GiveUp() if delay is None else RetryAfter(delay)


def after_lease_expired(retry: RetryPolicy, *, attempt: int, max_attempts: int | None) -> Verdict:
    """Decide what follows an expired lease.

    The next attempt starts at once: it was already delayed by the rest of the lease.
    """
    verdict = after_failure(retry, attempt=attempt, max_attempts=max_attempts)
    return verdict if isinstance(verdict, GiveUp) else RetryAfter(timedelta(0))


__all__ = [
    "GiveUp",
    "RetryAfter",
    "Verdict",
    "after_failure",
    "after_lease_expired",
    "check_duration",
    "check_header_names",
    "check_key",
    "check_retry",
    "is_storable_key",
    "retry_delay",
    "retry_from_json",
    "retry_to_json",
]
