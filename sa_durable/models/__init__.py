"""The schema: a task model per queue on the application's Base, and the models of its other tables.

Modules import in one direction: names, tables, siblings, declare, task, queues. `siblings` and `declare`
mention DurableTask, too, but in annotations only (under TYPE_CHECKING): mappers need each other's types, not
each other.
"""

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
