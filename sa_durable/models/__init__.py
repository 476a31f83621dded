"""The schema: a task model per queue on the application's Base, and its siblings."""

from .queues import in_order, queue_of, queues_beside
from .siblings import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableWait
from .task import DurableTask

__all__ = [
    "DurableCheckpoint",
    "DurableEvent",
    "DurableQueue",
    "DurableRun",
    "DurableTask",
    "DurableWait",
    "in_order",
    "queue_of",
    "queues_beside",
]
