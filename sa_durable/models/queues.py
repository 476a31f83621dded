"""Recognize queues, and find those of one Base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar, cast, overload

from sqlalchemy import Table

from ..errors import UnknownQueue
from .task import DurableTask

T = TypeVar("T", bound=DurableTask)
Q = TypeVar("Q", bound=type[DurableTask])


@overload
def queue_of(model: type[T]) -> type[T]: ...
@overload
def queue_of(model: object) -> type[DurableTask]: ...
def queue_of(model: object) -> type[DurableTask]:
    """Return `model` if it is the task model of a queue. Raises UnknownQueue."""
    if isinstance(model, type) and issubclass(model, DurableTask) and "__handlers__" in model.__dict__:
        return model
    raise UnknownQueue(f"{model!r} is no queue: pass a DurableTask class with __queue__, e.g. BillingTask")


def in_order(queues: Iterable[Q]) -> list[Q]:
    """Return queues in the order in which statements lock several of them: by name, then by schema."""
    return sorted(queues, key=lambda queue: (queue.__queue__, cast(Table, queue.__table__).schema or ""))


def queues_beside(model: type[DurableTask]) -> Iterator[type[DurableTask]]:
    """Yield every queue on the Base of `model`, including `model`, in order."""
    mappers = model.registry.mappers
    yield from in_order(m.class_ for m in mappers if issubclass(m.class_, DurableTask) and m.inherits is None)
