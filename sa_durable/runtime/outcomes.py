"""What a handler sees of the checkpoint of something it waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ..codec import Coder
from ..errors import ChildCancelled, ChildFailed, TaskNotFound, TimedOut
from ..services.waits import TIMED_OUT
from ..values import Json, TaskError, TaskState
from .steps import UNTYPED, decode

if TYPE_CHECKING:
    from ..models import DurableTask

Ref = tuple[type["DurableTask"], UUID]


def payload(coder: Coder, value: Json, step: str) -> Any:
    """The payload of the event that came. Raises TimedOut."""
    _check_in_time(value, step)
    return decode(coder, value["payload"], step)


def results(tasks: Sequence[Ref], value: Json, step: str) -> list[Any]:
    """The results of the tasks that have ended. Raises TimedOut, or for the first that has none ChildFailed,
    ChildCancelled or TaskNotFound."""
    _check_in_time(value, step)
    return [_result(model, task_id, end, step) for (model, task_id), end in zip(tasks, value, strict=True)]


def _result(model: type[DurableTask], task_id: UUID, end: Mapping[str, Json], step: str) -> Any:
    match end["state"]:
        case TaskState.COMPLETED:
            handler = model.__handlers__.get(end["name"])
            return decode(handler.result_coder if handler else UNTYPED, end["result"], step)
        case TaskState.FAILED:
            raise ChildFailed(task_id, TaskError.from_json(end["error"] or {}))
        case TaskState.CANCELLED:
            raise ChildCancelled(task_id)
        case _:
            raise TaskNotFound(model.__queue__, task_id)


def _check_in_time(value: Json, step: str) -> None:
    if isinstance(value, dict) and value.get(TIMED_OUT):
        raise TimedOut(f"{step}: it didn't come in time")
