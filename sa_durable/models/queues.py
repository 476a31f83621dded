"""Finding queues: what is one, and which stand on the same Base."""

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
    """`model` itself, if it is a queue's task model. Raises UnknownQueue."""
    if isinstance(model, type) and issubclass(model, DurableTask) and "__handlers__" in model.__dict__:
        return model
    raise UnknownQueue(f"{model!r} is no queue: give a DurableTask class with __queue__, e.g. BillingTask")


def in_order(queues: Iterable[Q]) -> list[Q]:
    """By name, and of one name by schema: the order in which whoever needs several takes them."""
    return sorted(queues, key=lambda queue: (queue.__queue__, cast(Table, queue.__table__).schema or ""))


def queues_beside(model: type[DurableTask]) -> Iterator[type[DurableTask]]:
    """Every queue on the Base of `model`, itself included, in order."""
    mappers = model.registry.mappers
    yield from in_order(m.class_ for m in mappers if issubclass(m.class_, DurableTask) and m.inherits is None)
