"""What should happen next. Pure: values in, values out."""

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
RESERVED_HEADER_PREFIX = "durable:"
KEY_LENGTH = 255
MAX_SPAN = timedelta(days=36500)  # what comes later is no date that PostgreSQL and Python share
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def check_header_names(headers: Mapping[str, Json]) -> None:
    """Raises InvalidOptions."""
    for name in headers:
        if not isinstance(name, str) or name.startswith(RESERVED_HEADER_PREFIX):
            raise InvalidOptions(
                f"header {name!r}: names are strings and {RESERVED_HEADER_PREFIX!r} at their start is reserved"
            )


def check_duration(name: str, value: timedelta, *, zero: bool) -> None:
    """Raises InvalidOptions for what is no duration of at most a century, or, unless `zero`, none at all."""
    if not isinstance(value, timedelta):
        raise InvalidOptions(f"{name}={value!r} must be a timedelta")
    if value < timedelta(0) or (not zero and not value):
        raise InvalidOptions(f"{name}={value!r} must not be negative{'' if zero else ' or zero'}")
    if value > MAX_SPAN:
        raise InvalidOptions(f"{name}={value!r} must be at most {MAX_SPAN.days} days")


def is_storable_key(key: str) -> bool:
    """False for what no task can have as its key, derived ones included."""
    return isinstance(key, str) and 1 <= len(key) <= KEY_LENGTH and not _unstorable(key)


def _unstorable(key: str) -> bool:
    return "\0" in key if key.isascii() else bool(_UNSTORABLE.search(key))


def check_key(key: str) -> str:
    """`key` itself, if it can be one. Raises InvalidKey."""
    if not isinstance(key, str):
        raise InvalidKey(f"idempotency_key={key!r} must be a string")
    if not 1 <= len(key) <= KEY_LENGTH:
        raise InvalidKey(
            f"idempotency_key of {len(key)} characters: 1 to {KEY_LENGTH} are allowed; hash a longer one yourself"
        )
    if _unstorable(key):
        raise InvalidKey(
            f"idempotency_key={key!r} has a NUL or a lone surrogate, which PostgreSQL can't store"
        )
    if key.startswith(RESERVED_KEY_PREFIX):
        raise InvalidKey(
            f"idempotency_key={key!r}: the prefix {RESERVED_KEY_PREFIX!r} is reserved for derived keys"
        )
    return key


def check_retry(retry: RetryPolicy) -> None:
    """Raises InvalidOptions for a policy whose delays are no durations."""
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
    """The policy that `retry_to_json` stored; the default one for None (a row made by hand)."""
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
            raise InvalidOptions(f"stored retry policy {value!r} is of no kind that this version knows")


def retry_delay(retry: RetryPolicy, attempt: int, *, chance: float | None = None) -> timedelta | None:
    """How long after the failure of `attempt` (from 1) the next one starts; None: no further attempt.

    `chance` (0 to 1) stands in for the random number that jitter draws.
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
    """Another attempt, after a delay."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No further attempt: the task fails."""


Verdict: TypeAlias = RetryAfter | GiveUp


def after_failure(
    retry: RetryPolicy,
    *,
    attempt: int,
    max_attempts: int | None,
    retryable: bool = True,
    chance: float | None = None,
) -> Verdict:
    """What follows the failure of `attempt`."""
    if not retryable or (max_attempts is not None and attempt >= max_attempts):
        return GiveUp()
    delay = retry_delay(retry, attempt, chance=chance)
    return GiveUp() if delay is None else RetryAfter(delay)


def after_lease_expired(retry: RetryPolicy, *, attempt: int, max_attempts: int | None) -> Verdict:
    """What follows a lost worker. The next attempt starts at once: its delay was the rest of the lease."""
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
