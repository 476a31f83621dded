"""Where a backfill takes keys from, and how it writes them: values that operations carry."""

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
"""The source that gives every task the key which `spawn(only_once=True)` would: from its name and params."""

Source: TypeAlias = str | Literal[_Marker.ONCE]
"""An SQL expression over the task's row (`"headers->>'idempotency_key'"`), or ONCE."""


@dataclass(frozen=True, slots=True)
class Backfill:
    """Which keys the rows of before get."""

    source: Source
    hold: Hold
    batch_size: int  # rows per page, each page is a transaction

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if isinstance(self.source, str) and not self.source.strip():
            raise ValueError("source must be an SQL expression, ONCE, or None for no backfill")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a lock that stops everybody else meanwhile, and how often."""

    lock_timeout: float  # seconds
    attempts: int

    def __post_init__(self) -> None:
        if self.lock_timeout <= 0 or self.attempts < 1:
            raise ValueError(f"{self} must allow some time (0 would wait forever) and one attempt")

    def pause(self, attempt: int) -> float:
        """Seconds between attempt number `attempt`, from 1, and the next."""
        return min(0.5 * 2.0 ** (attempt - 1), 10.0)


DEFAULT_PATIENCE = Patience(lock_timeout=1.0, attempts=30)
