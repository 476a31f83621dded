"""What should happen next. Pure: values in, values out."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from .errors import InvalidKey, InvalidOptions
from .values import (
    Exponential,
    Fixed,
    Hold,
    Json,
    NoRetry,
    OnDuplicate,
    RetryPolicy,
    SpawnKeywords,
    SpawnOptions,
)

RESERVED_KEY_PREFIX = "~"
RESERVED_HEADER_PREFIX = "durable:"
KEY_LENGTH = 255
LONGEST = timedelta(days=36500)  # what comes later is no date that PostgreSQL and Python share
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def resolve(*layers: SpawnKeywords | None) -> SpawnOptions:
    """The options of a spawn: each field from the first layer that has it, else the default. Raises InvalidOptions.

    `delay` and `run_at` are one choice: a layer that sets either hides both in the layers after it.
    """
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        if layer:
            if layer.get("delay") is not None or layer.get("run_at") is not None:
                merged.pop("delay", None)
                merged.pop("run_at", None)
            merged.update(layer)
    try:
        options = SpawnOptions(
            **{
                **merged,
                "hold": Hold(merged.get("hold", Hold.ACTIVE)),
                "on_duplicate": OnDuplicate(merged.get("on_duplicate", OnDuplicate.RETURN)),
            }
        )
    except TypeError as error:
        unknown = sorted(set(merged) - set(SpawnKeywords.__annotations__))
        raise InvalidOptions(
            f"unknown spawn options {unknown}: see SpawnOptions for what there is"
        ) from error
    except ValueError as error:
        raise InvalidOptions(
            f"{error}: hold is one of {[*Hold]}, on_duplicate one of {[*OnDuplicate]}"
        ) from error
    _check(options)
    return options


def _check(o: SpawnOptions) -> None:  # noqa: C901, PLR0912 - a flat list of rules reads best in one place
    if o.idempotency_key is not None:
        check_key(o.idempotency_key)
    if o.key_ttl is not None:
        if o.hold not in (Hold.SUCCEEDED, Hold.FOREVER):
            raise InvalidOptions(
                f'key_ttl goes with hold="succeeded" or "forever": with hold={o.hold.value!r} the key is free '
                "as soon as the holder ends"
            )
        _check_duration("key_ttl", o.key_ttl, zero=False)
    if o.delay is not None and o.run_at is not None:
        raise InvalidOptions("delay and run_at exclude each other: give one")
    if o.delay is not None:
        _check_duration("delay", o.delay, zero=True)
    if o.run_at is not None:
        if not isinstance(o.run_at, datetime):
            raise InvalidOptions(f"run_at={o.run_at!r} must be a datetime")
        if o.run_at.utcoffset() is None:
            raise InvalidOptions(
                f"run_at={o.run_at!r} has no time zone: use an aware datetime, e.g. with tzinfo=UTC"
            )
    if o.max_attempts is not None and not (type(o.max_attempts) is int and 1 <= o.max_attempts < 2**31):
        raise InvalidOptions(
            f"max_attempts={o.max_attempts!r} must be an integer from 1, or None for no limit"
        )
    if not (type(o.priority) is int and -(2**15) <= o.priority < 2**15):
        raise InvalidOptions(
            f"priority={o.priority!r} must be an integer from -32768 to 32767 (lower runs first)"
        )
    if o.strict and o.on_duplicate is OnDuplicate.UPDATE:
        raise InvalidOptions('strict refuses other params and on_duplicate="update" takes them: give one')
    if o.on_duplicate is not OnDuplicate.RETURN and o.idempotency_key is None and not o.only_once:
        raise InvalidOptions(
            f"on_duplicate={o.on_duplicate.value!r} needs a key: give idempotency_key or only_once=True"
        )
    check_retry(o.retry)
    if o.headers is not None and not isinstance(o.headers, Mapping):
        raise InvalidOptions(f"headers={o.headers!r} must be a mapping of names to JSON values")
    if o.columns is not None and not isinstance(o.columns, Mapping):
        raise InvalidOptions(f"columns={o.columns!r} must be a mapping of your own columns to values")
    for name in o.headers or ():
        if not isinstance(name, str) or name.startswith(RESERVED_HEADER_PREFIX):
            raise InvalidOptions(
                f"header {name!r}: names are strings and {RESERVED_HEADER_PREFIX!r} at their start is reserved"
            )


def _check_duration(name: str, value: timedelta, *, zero: bool) -> None:
    if not isinstance(value, timedelta):
        raise InvalidOptions(f"{name}={value!r} must be a timedelta")
    if value < timedelta(0) or (not zero and not value):
        raise InvalidOptions(f"{name}={value!r} must not be negative{'' if zero else ' or zero'}")
    if value > LONGEST:
        raise InvalidOptions(f"{name}={value!r} must be at most {LONGEST.days} days")


def storable_key(key: str) -> bool:
    """False for what no task can have as its key, derived ones included."""
    return isinstance(key, str) and 1 <= len(key) <= KEY_LENGTH and not _UNSTORABLE.search(key)


def check_key(key: str) -> str:
    """`key` itself, if it can be one. Raises InvalidKey."""
    if not isinstance(key, str):
        raise InvalidKey(f"idempotency_key={key!r} must be a string")
    if not 1 <= len(key) <= KEY_LENGTH:
        raise InvalidKey(
            f"idempotency_key of {len(key)} characters: 1 to {KEY_LENGTH} are allowed; hash a longer one yourself"
        )
    if _UNSTORABLE.search(key):
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
            _check_duration("retry.delay", delay, zero=True)
        case Exponential(base, factor, cap, jitter):
            _check_duration("retry.base", base, zero=True)
            _check_duration("retry.cap", cap, zero=True)
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
                full = limit
    draw = random.random() if chance is None else chance  # noqa: S311 - spreads load, protects nothing
    return timedelta(seconds=min(full, LONGEST.total_seconds()) * (1 - jitter * draw))


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
    "check_key",
    "check_retry",
    "resolve",
    "retry_delay",
    "retry_from_json",
    "retry_to_json",
    "storable_key",
]
