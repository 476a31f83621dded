"""What a worker runs: queues, and the handlers that it knows for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...errors import UnknownQueue
from ...handlers import Handler
from ...models import queue_of
from ...services.watermark import ClaimWatermark

if TYPE_CHECKING:
    from ...models import DurableTask

Model = type["DurableTask"]


class Registry:
    """The queues of a worker. Handlers registered later are known from then on. Raises UnknownQueue."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.queues: tuple[Model, ...] = tuple(dict.fromkeys(queue_of(model) for model in models))
        self._fronts: dict[tuple[Model, tuple[str, ...]], ClaimWatermark] = {}
        if not self.queues:
            raise UnknownQueue("a worker needs at least one queue: Worker(engine, [BillingTask])")

    def names(self, model: Model) -> list[str]:
        """The names of tasks that can be claimed: those of others stay where they are."""
        return list(model.__handlers__)

    def handler(self, model: Model, name: str) -> Handler[Any, ..., Any]:
        return model.__handlers__[name]

    def watermark(self, model: Model) -> ClaimWatermark:
        """What claims of the names that are known now have seen."""
        return self._fronts.setdefault((model, tuple(self.names(model))), ClaimWatermark())
