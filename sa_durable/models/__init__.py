"""The schema: a task model per queue on the application's Base, and its siblings."""

from .siblings import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableWait
from .task import DurableTask, queue_of, queues_beside

__all__ = [
    "DurableCheckpoint",
    "DurableEvent",
    "DurableQueue",
    "DurableRun",
    "DurableTask",
    "DurableWait",
    "queue_of",
    "queues_beside",
]
