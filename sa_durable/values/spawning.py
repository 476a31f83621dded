"""How a task is spawned: keys, duplicates, retries and deadlines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias, TypedDict

from .json import Json


class Hold(StrEnum):
    """How long a task holds its idempotency key, which blocks the key for other tasks."""

    ACTIVE = "active"
    """Until the task has ended."""
    QUEUED = "queued"
    """Until the task first starts."""
    SUCCEEDED = "succeeded"
    """While the task is active or completed. A task that fails or is cancelled frees the key."""
    FOREVER = "forever"
    """Until the task is deleted or the key is released."""


class OnDuplicate(StrEnum):
    """What a spawn does when a task of the same name holds its key."""

    RETURN = "return"
    """Return the existing task."""
    RAISE = "raise"
    """Raise DuplicateTask. Nothing is written."""
    UPDATE = "update"
    """Give the holder the new params and schedule if it hasn't started. Otherwise as RETURN."""
    REPLACE = "replace"
    """Cancel the holder and its descendants, and spawn the new task."""


@dataclass(frozen=True, slots=True)
class NoRetry:
    """Make one attempt: the first failure is final."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Retry after the same delay each time."""

    delay: timedelta = timedelta(seconds=30)
    """Time from a failure to the next attempt."""
    jitter: float = 0.2
    """The delay is shortened by a random part of up to this share (0 to 1)."""


@dataclass(frozen=True, slots=True)
class Exponential:
    """Retry after a delay that grows with each failure.

    The delay after the n-th failure is `base * factor ** (n - 1)`, at most `cap`.
    """

    base: timedelta = timedelta(seconds=5)
    """Delay after the first failure."""
    factor: float = 2.0
    """By how much the delay grows with each failure."""
    cap: timedelta = timedelta(minutes=5)
    """The longest delay."""
    jitter: float = 0.2
    """The delay is shortened by a random part of up to this share (0 to 1), so that tasks that failed
    together don't retry together.
    """


RetryPolicy: TypeAlias = NoRetry | Fixed | Exponential
DEFAULT_RETRY = Exponential()
DEFAULT_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Deadlines of a task (None: none). A task past one is cancelled, with its descendants."""

    start_within: timedelta | None = None
    """From when the task is due (the spawn, or its `run_at` or `delay`) to its first start."""
    max_duration: timedelta | None = None
    """From the first start of the task to its end, over all attempts and sleeps."""


class HandlerKeywords(TypedDict, total=False):
    """The spawn options that a handler or a queue can have defaults for: all but those of a single task."""

    only_once: bool
    """Derive the key from the task's name and params."""
    hold: Hold | str
    """How long the task holds its key: a Hold or its value."""
    key_ttl: timedelta | None
    """When the key is free again, from the spawn on. Needs a hold of "succeeded" or "forever"."""
    on_duplicate: OnDuplicate | str
    """What to do when a task holds the key: an OnDuplicate or its value."""
    strict: bool
    """Raise IdempotencyConflict if the holder of the key has other params."""
    max_attempts: int | None
    """How many attempts the task has. None: unlimited."""
    retry: RetryPolicy
    """When the next attempt starts after a failure."""
    cancellation: Cancellation | None
    """Deadlines of the task."""
    headers: Mapping[str, Json] | None
    """Metadata of the task, which its handler reads as `ctx.headers`."""
    priority: int
    """-32768 to 32767. Tasks with a lower priority are claimed first."""
    delay: timedelta | None
    """When the task is due, from the database's now on."""


class SpawnKeywords(HandlerKeywords, total=False):
    """The keyword arguments of `spawn`: the fields of SpawnOptions."""

    idempotency_key: str | None
    """The task's key. Takes precedence over `only_once`."""
    run_at: datetime | None
    """When the task is due: an aware datetime, instead of `delay`."""
    columns: Mapping[str, Any] | None
    """Values for the application's own columns of the task model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnOptions:
    """How a task is spawned, with every default applied. Made and checked by `spawn_options.resolve`.

    `help(Durable.spawn)` explains each option.
    """

    only_once: bool = False
    """Derive the key from the task's name and params."""
    idempotency_key: str | None = None
    """The task's key. Takes precedence over `only_once`."""
    hold: Hold = Hold.ACTIVE
    """How long the task holds its key."""
    key_ttl: timedelta | None = None
    """When the key is free again, from the spawn on. Needs a hold of "succeeded" or "forever"."""
    on_duplicate: OnDuplicate = OnDuplicate.RETURN
    """What to do when a task holds the key."""
    strict: bool = False
    """Raise IdempotencyConflict if the holder of the key has other params."""
    max_attempts: int | None = DEFAULT_MAX_ATTEMPTS
    """How many attempts the task has. None: unlimited."""
    retry: RetryPolicy = DEFAULT_RETRY
    """When the next attempt starts after a failure."""
    cancellation: Cancellation | None = None
    """Deadlines of the task."""
    headers: Mapping[str, Json] | None = None
    """Metadata of the task, which its handler reads as `ctx.headers`."""
    priority: int = 0
    """-32768 to 32767. Tasks with a lower priority are claimed first."""
    delay: timedelta | None = None
    """When the task is due, from the database's now on."""
    run_at: datetime | None = None
    """When the task is due: an aware datetime, instead of `delay`."""
    columns: Mapping[str, Any] | None = None
    """Values for the application's own columns of the task model."""
