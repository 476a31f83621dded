"""Values of the key operations: where keys come from, how they are written, how long to wait for locks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias

from ..values import Hold


class _Marker(Enum):
    ONCE = "ONCE"

    def __repr__(self) -> str:
        return "sa_durable.alembic.ONCE"  # as a rendered revision spells it


ONCE: Final = _Marker.ONCE
"""The source that gives every task the key of `spawn(only_once=True)`, computed from its name and params."""

Source: TypeAlias = str | Literal[_Marker.ONCE]
"""An SQL expression over the task's row (`"headers->>'idempotency_key'"`), or ONCE."""


@dataclass(frozen=True, slots=True)
class Backfill:
    """Which keys existing rows get."""

    source: Source
    """Where a row's key comes from."""
    hold: Hold
    """How long the rows hold their keys."""
    batch_size: int
    """Rows per page. Each page is a transaction."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if isinstance(self.source, str) and not self.source.strip():
            raise ValueError("source must be an SQL expression, ONCE, or None for no backfill")


@dataclass(frozen=True, slots=True)
class LockRetry:
    """How long to wait for a lock that blocks other sessions meanwhile, and how often to try."""

    lock_timeout: float
    """Seconds per attempt."""
    attempts: int
    """Number of attempts."""

    def __post_init__(self) -> None:
        if self.lock_timeout <= 0:
            raise ValueError(f"lock_timeout={self.lock_timeout} must be more than 0: 0 would wait forever")
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")

    def backoff(self, attempt: int) -> float:
        """Return the seconds between attempt number `attempt`, counted from 1, and the next."""
        return min(0.5 * 2.0 ** (attempt - 1), 10.0)


DEFAULT_LOCK_RETRY = LockRetry(lock_timeout=1.0, attempts=30)
