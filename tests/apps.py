"""What the fixture applications of the tests share: a base with queues, columns, and how a handler fails once.

It declares no queue itself: `sa-durable worker` runs all queues that importing an application declares.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from types import new_class
from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_durable import DurableTask, Fixed

NOW = Fixed(timedelta(0), jitter=0)
"""Retry without a pause."""


def application(**queues: str) -> tuple[Any, ...]:
    """Return a new declarative base, and a task model on it for each `ModelName="queue"`."""
    module = sys._getframe(1).f_globals["__name__"]  # of the application: its objects can be pickled
    base = new_class("Base", (DeclarativeBase,), exec_body=lambda body: body.update(__module__=module))
    return base, *(task_model(base, name, queue, module) for name, queue in queues.items())


def task_model(base: type, name: str, queue: str, module: str) -> Any:
    """Return a task model without columns of its own, as `module` would declare it."""
    attributes = {"__queue__": queue, "__module__": module}
    return new_class(name, (DurableTask, base), exec_body=lambda body: body.update(attributes))


@dataclass(frozen=True)
class Line:
    """A value that handlers take and return."""

    sku: str
    price: Decimal
    tags: frozenset[str] = frozenset()


class NoteColumns:
    """The columns of a table in which handlers write what they did."""

    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


def fail_first_attempt(ctx: Any) -> None:
    """Raise in the first attempt of a task, so that its handler is run a second time."""
    if ctx.attempt == 1:
        raise ValueError("again")
