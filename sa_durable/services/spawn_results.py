"""What spawns came to: the objects of their tasks, and the results of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session, class_mapper
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.orm.session import make_transient_to_detached

from ..ids import uuid7_bytes
from ..values import SpawnResult, TaskState

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
R = TypeVar("R")
_BYTES = 32  # of two ids
_RUN = 2**128 - 1


class TaskAttacher:
    """Makes objects of `session` for tasks, without a statement: their columns load when they are first read.

    It keeps them, as a session doesn't keep what nobody else refers to.
    """

    __slots__ = ("objects", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.objects: dict[UUID, DurableTask] = {}

    def __call__(self, model: Model, task_id: UUID) -> DurableTask:
        key = class_mapper(model).identity_key_from_primary_key(
            (task_id,)
        )  # configured, if nobody did before
        present: DurableTask | None = self.session.identity_map.get(key)
        if present is None:
            present = manager_of_class(model).new_instance()
            present.id = task_id
            make_transient_to_detached(present)
            self.session.add(present)
        self.objects[task_id] = present
        return present


class SpawnResults(Sequence[SpawnResult[R]]):
    """The results of a batch, in the order of its calls.

    Each call has two ids from the start, in the order of the calls, as bytes; of a plain new task nothing else is kept,
    and its result is made when it is looked at: a million of them take 32 MB, not 300.
    """

    __slots__ = ("_attach", "_ids", "_others", "_plain")

    def __init__(self, attach: TaskAttacher) -> None:
        self._attach = attach
        self._plain: Model | None = None  # the queue of those that are kept as ids: the batch's first
        self._ids = bytearray()  # of task and run, for each position
        self._others: dict[int, SpawnResult[R]] = {}

    def digits(self, positions: Sequence[int]) -> list[str]:
        """Of each, 64: of the id for a new task, and of its run's."""
        self._reach(max(positions))
        ids = self._ids
        return [ids[_BYTES * position : _BYTES * (position + 1)].hex() for position in positions]

    def task_id(self, position: int) -> UUID:
        """Of the new task."""
        return UUID(bytes=bytes(self._ids[_BYTES * position : _BYTES * position + 16]))

    def add_created(
        self, model: Model, positions: Iterable[int], state: str = TaskState.PENDING.value
    ) -> None:
        """The calls at `positions` inserted tasks with those ids."""
        self._plain = self._plain or model
        if model is self._plain and state == TaskState.PENDING.value:
            if self._others:
                for position in positions:
                    self._others.pop(position, None)  # of an attempt that was undone
            return
        for position in positions:
            self.put(position, self._new(position, model, TaskState(state)))

    def put(self, position: int, result: SpawnResult[R]) -> None:
        self._reach(position)
        self._others[position] = result

    def _reach(self, position: int) -> None:
        if (missing := position + 1 - len(self)) > 0:
            self._ids += uuid7_bytes(2 * missing)

    def __len__(self) -> int:
        return len(self._ids) // _BYTES

    @overload
    def __getitem__(self, index: int) -> SpawnResult[R]: ...
    @overload
    def __getitem__(self, index: slice) -> list[SpawnResult[R]]: ...
    def __getitem__(self, index: int | slice) -> SpawnResult[R] | list[SpawnResult[R]]:
        positions = range(len(self))[index]
        return self._at(positions) if isinstance(positions, int) else [self._at(i) for i in positions]

    def __iter__(self) -> Iterator[SpawnResult[R]]:
        return map(self._at, range(len(self)))

    def _at(self, position: int) -> SpawnResult[R]:
        if (other := self._others.get(position)) is not None:
            return other
        return self._new(position, self._plain or object, TaskState.PENDING)

    def _new(self, position: int, model: type[Any], state: TaskState) -> SpawnResult[R]:
        ids = int.from_bytes(self._ids[_BYTES * position : _BYTES * (position + 1)])
        task_id, run_id = UUID(int=ids >> 128), UUID(int=ids & _RUN)
        return SpawnResult(task_id, run_id, 1, True, state, True, model, self._attach)

    def __repr__(self) -> str:
        return f"<{len(self)} spawn results>"
