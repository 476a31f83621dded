"""The queues of a worker, the handlers of each, and what its claims have seen of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...errors import UnknownQueue
from ...handlers import Handler
from ...models import queue_of
from ...services.watermark import ClaimWatermark
from ..tuning import DEFAULT_TUNING, Tuning

if TYPE_CHECKING:
    from ...models import DurableTask

Model = type["DurableTask"]


class Registry:
    """The queues of a worker. Includes handlers that are registered after the worker was made.

    Args:
        models: Task classes. A class that is listed twice counts once.

    Raises:
        UnknownQueue: `models` is empty, or one of them is no task class with a queue.
    """

    queues: tuple[Model, ...]
    """The task classes, in the given order."""

    def __init__(self, models: Iterable[Model], tuning: Tuning = DEFAULT_TUNING) -> None:
        self.queues = tuple(dict.fromkeys(queue_of(model) for model in models))
        self._tuning = tuning
        self._watermarks: dict[tuple[Model, tuple[str, ...]], ClaimWatermark] = {}
        if not self.queues:
            raise UnknownQueue("a worker needs at least one queue: Worker(engine, [BillingTask])")

    def names(self, model: Model) -> list[str]:
        """Return the task names of a queue that have a handler here: this worker can claim them."""
        return list(model.__handlers__)

    def handler(self, model: Model, name: str) -> Handler[Any, ..., Any]:
        """Return the handler of a task name."""
        return model.__handlers__[name]

    def watermark(self, model: Model) -> ClaimWatermark:
        """Return the watermark of the queue's claims for the names that are registered now.

        A new handler means a new watermark: earlier claims have skipped tasks of its name.
        """
        key = model, tuple(self.names(model))
        if (known := self._watermarks.get(key)) is not None:
            return known
        tuning = self._tuning
        watermark = ClaimWatermark(
            full_scan_interval_s=tuning.full_scan_interval_s, late_commit_s=tuning.late_commit_s
        )
        return self._watermarks.setdefault(key, watermark)  # atomic: claimer and waker both call this
