"""Operations of a context that were decided without I/O: what is left to do, and with what.

`base.Context` prepares an operation; `TaskContext` and `AsyncTaskContext` only differ in how they perform it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeAlias, TypeVar

from sqlalchemy.orm import Session

from ...services.waits import Awaited
from ...values import Json

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ready(Generic[R]):
    """Nothing is left to do, because the operation is replayed."""

    value: R
    """What the operation returns."""


@dataclass(frozen=True, slots=True)
class InSession(Generic[R]):
    """Part of the transaction of a transactional handler."""

    call: Callable[[Session], R]
    """To be called with the handler's session."""


@dataclass(frozen=True, slots=True)
class Blocking(Generic[R]):
    """A transaction of the library's own."""

    call: Callable[[], R]
    """To be called; it blocks until the transaction has committed."""


@dataclass(frozen=True, slots=True)
class Waiting(Generic[R]):
    """A wait that suspends the run, unless what it awaits has arrived."""

    step: str
    """Key of the wait's checkpoint."""

    awaited: Awaited
    """The event or tasks to wait for."""

    timeout: timedelta | None
    """Longest time to wait; None for no limit."""

    read: Callable[[Json], R]
    """Makes the value to return of the wait's checkpoint."""


Prepared: TypeAlias = Ready[R] | InSession[R] | Blocking[R] | Waiting[R]
