"""Read the arguments that name a call or a task in several ways."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from ..errors import InvalidOptions, UnknownQueue
from ..handlers import Call, call_by_name
from ..models import DurableTask, queue_of
from ..values import SpawnResult


def as_call(*what: Any) -> Call[Any, Any]:
    """Return the call that the arguments of a spawn name.

    Args:
        *what: A call, or a queue's model, a task's name and its params.

    Raises:
        InvalidOptions: They name no call.
    """
    match what:
        case (Call() as call,):
            return call
        case (model, str() as name, params):
            queue = queue_of(model)
            return call_by_name(queue, name, params, queue.__handlers__.get(name))
        case _:
            raise InvalidOptions(
                "spawn takes a call, charge.call(...), or a queue's model, a task's name and its params"
            )


def task_ref(*what: Any) -> tuple[type[DurableTask], UUID]:
    """Return the queue and the id of the task that the arguments name.

    Args:
        *what: The result of a spawn, a task object, or a queue's model and a task's id.

    Raises:
        UnknownQueue: They name no task.
    """
    match what:
        case (SpawnResult() as spawned,):
            return queue_of(spawned.model), spawned.task_id
        case (DurableTask() as task,):
            return queue_of(type(task)), task.id
        case (model, UUID() as task_id):
            return queue_of(model), task_id
        case _:
            raise UnknownQueue(
                "these arguments name no task: pass the result of a spawn, a task object, "
                "or a queue's model and a task's id"
            )
