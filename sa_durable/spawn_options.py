"""Resolve and check the options of a spawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from .errors import InvalidOptions
from .policy import check_duration, check_header_names, check_key, check_retry
from .values import Cancellation, Hold, Json, OnDuplicate, SpawnKeywords, SpawnOptions

E = TypeVar("E", bound=StrEnum)

PER_TASK = ("idempotency_key", "headers", "columns")
"""The options that usually differ between the tasks of a batch."""


def resolve(*layers: SpawnKeywords | None) -> SpawnOptions:
    """Return the options of a spawn: each field from the first layer that has it, else the default.

    `delay` and `run_at` are one choice: a layer that sets one of them hides both in later layers. Raises
    InvalidOptions.
    """
    merged = merge(*layers)
    own = {name: merged.pop(name, None) for name in PER_TASK}
    options = replace(resolve_shared(merged), **own)
    check_own(options, **own)
    return options


def merge(*layers: SpawnKeywords | None) -> dict[str, Any]:
    """Return the fields that any layer has, with the precedence of `resolve`, without checking them."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        if layer:
            if layer.get("delay") is not None or layer.get("run_at") is not None:
                merged.pop("delay", None)
                merged.pop("run_at", None)
            merged.update(layer)
    return merged


def resolve_shared(merged: Mapping[str, Any]) -> SpawnOptions:
    """Return the options that `merge` has found. Raises InvalidOptions.

    `check_own` checks the options PER_TASK, which are left out.
    """
    if unknown := sorted(merged.keys() - SpawnKeywords.__annotations__.keys()):
        known = ", ".join(SpawnKeywords.__annotations__)
        raise InvalidOptions(f"unknown spawn options {unknown}; the options are {known}")
    chosen = {
        "hold": _choice("hold", Hold, merged.get("hold", Hold.ACTIVE)),
        "on_duplicate": _choice("on_duplicate", OnDuplicate, merged.get("on_duplicate", OnDuplicate.RETURN)),
    }
    options = SpawnOptions(**{**merged, **chosen})
    _check(options)
    return options


def _choice(name: str, choices: type[E], value: Any) -> E:
    try:
        return choices(value)
    except ValueError as error:
        raise InvalidOptions(
            f"{name}={value!r} must be one of {', '.join(map(repr, map(str, choices)))}"
        ) from error


def check_own(
    options: SpawnOptions,
    *,
    idempotency_key: str | None,
    headers: Mapping[str, Json] | None,
    columns: Mapping[str, Any] | None,
) -> None:
    """Raise InvalidOptions or InvalidKey if a task can't have these options.

    `options` are the task's other options.
    """
    if idempotency_key is not None:
        check_key(idempotency_key)
    elif options.on_duplicate is not OnDuplicate.RETURN and not options.only_once:
        raise InvalidOptions(
            f"on_duplicate={options.on_duplicate.value!r} needs a key: pass idempotency_key or only_once=True"
        )
    if headers is not None:
        if not isinstance(headers, Mapping):
            raise InvalidOptions(
                f"headers must be a mapping of names to JSON values, not a {type(headers).__qualname__}"
            )
        check_header_names(headers)
    if columns is not None and not isinstance(columns, Mapping):
        raise InvalidOptions(
            f"columns must be a mapping of your own columns to values, not a {type(columns).__qualname__}"
        )


def _check(o: SpawnOptions) -> None:  # noqa: C901, PLR0912 - a flat list of rules reads best in one place
    if o.key_ttl is not None:
        if o.hold not in (Hold.SUCCEEDED, Hold.FOREVER):
            raise InvalidOptions(
                f'key_ttl needs hold="succeeded" or "forever". With hold={o.hold.value!r}, '
                "the key is free as soon as the holder ends."
            )
        check_duration("key_ttl", o.key_ttl, zero=False)
    if o.delay is not None and o.run_at is not None:
        raise InvalidOptions("delay and run_at exclude each other: pass one")
    if o.delay is not None:
        check_duration("delay", o.delay, zero=True)
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
        raise InvalidOptions('strict rejects other params and on_duplicate="update" takes them: pass one')
    check_retry(o.retry)
    if o.cancellation is not None:
        if not isinstance(o.cancellation, Cancellation):
            raise InvalidOptions(f"cancellation={o.cancellation!r} must be a Cancellation(...)")
        for name in ("start_within", "max_duration"):
            if (limit := getattr(o.cancellation, name)) is not None:
                check_duration(f"cancellation.{name}", limit, zero=False)


__all__ = ["check_own", "merge", "resolve", "resolve_shared"]
