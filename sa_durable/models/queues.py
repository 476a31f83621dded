"""Finding queues: what is one, and which stand on the same Base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, overload

from ..errors import UnknownQueue
from .task import DurableTask

T = TypeVar("T", bound=DurableTask)


@overload
def queue_of(model: type[T]) -> type[T]: ...
@overload
def queue_of(model: object) -> type[DurableTask]: ...
def queue_of(model: object) -> type[DurableTask]:
    """`model` itself, if it is a queue's task model. Raises UnknownQueue."""
    if isinstance(model, type) and issubclass(model, DurableTask) and "__handlers__" in model.__dict__:
        return model
    raise UnknownQueue(f"{model!r} is no queue: give a DurableTask class with __queue__, e.g. BillingTask")


def queues_beside(model: type[DurableTask]) -> Iterator[type[DurableTask]]:
    """Every queue on the Base of `model`, itself included, by name."""
    queues = (m.class_ for m in model.registry.mappers if issubclass(m.class_, DurableTask))
    yield from sorted(queues, key=lambda queue: queue.__queue__)
