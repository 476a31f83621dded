"""What the model keeps of tasks, waits and events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

OVER = ("completed", "failed", "cancelled")
LEASE = 60


class Refused(Exception):
    """A typed error of the package's, by name."""


@dataclass
class Wait:
    event: str
    timeout: int | None
    settled: bool = False


@dataclass
class Task:
    id: UUID
    name: str
    params: Any
    created: int
    available: int | None
    state: str = "pending"
    priority: int = 0
    attempt: int = 1
    max_attempts: int | None = 5
    retry_delay: int | None = None  # None: no retry
    key: str | None = None
    hold: str | None = None
    expires: int | None = None
    parent: UUID | None = None
    max_duration: int | None = None
    cancel_at: int | None = None
    token: int = 0
    first_started: bool = False
    started: bool = False
    lease: int | None = None
    finished: int | None = None
    awaited: bool = False
    result: Any = None
    saved: dict[str, Any] = field(default_factory=dict)
    waits: dict[tuple[str, str], Wait] = field(default_factory=dict)
    runs: list[tuple[int, str]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def holds(self) -> bool:
        return {
            None: False,
            "forever": True,
            "succeeded": self.state not in ("failed", "cancelled"),
            "active": not self.over,
            "queued": not self.over and not self.first_started,
        }[self.hold]


@dataclass
class Event:
    name: str
    payload: Any
    settled: bool = False
    dropped: bool = False


@dataclass
class Ask:
    """A spawn, but for what the caller leaves out."""

    name: str
    params: Any
    key: str | None = None
    hold: str = "active"
    ttl: int | None = None
    on_duplicate: str = "return"
    strict: bool = False
    delay: int = 0
    priority: int = 0
    max_attempts: int | None = 5
    retry_delay: int | None = None
    start_within: int | None = None
    max_duration: int | None = None
