"""What spawns came to: the objects of their tasks, and the results of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session, class_mapper
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.orm.session import make_transient_to_detached

from ..values import SpawnResult, TaskState

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
R = TypeVar("R")
_BYTES = 32  # of two ids
_RUN = 2**128 - 1


class Attach:
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

    Of a plain new task only the ids are kept, as bytes, and its result is made when it is looked at: a million of them
    take 32 MB, not 300.
    """

    __slots__ = ("_attach", "_ids", "_others", "_plain")

    def __init__(self, attach: Attach) -> None:
        self._attach = attach
        self._plain: Model | None = None  # the queue of those that are kept as ids: the batch's first
        self._ids = bytearray()  # of task and run, for each position
        self._others: dict[int, SpawnResult[R]] = {}

    def put_new(self, position: int, model: Model, ids: str, state: str) -> None:
        """The call at `position` inserted a task; `ids` are the 64 digits of its id and its run's."""
        self._plain = self._plain or model
        if model is not self._plain or state != "pending":
            task_id, run_id = UUID(ids[:32]), UUID(ids[32:])
            self.put(
                position, SpawnResult(task_id, run_id, 1, True, TaskState(state), True, model, self._attach)
            )
            return
        self._reach(position)
        self._others.pop(position, None)  # of an attempt that was undone
        self._ids[_BYTES * position : _BYTES * (position + 1)] = bytes.fromhex(ids)

    def put(self, position: int, result: SpawnResult[R]) -> None:
        self._reach(position)
        self._others[position] = result

    def _reach(self, position: int) -> None:
        if (missing := _BYTES * (position + 1) - len(self._ids)) > 0:
            self._ids += bytes(missing)

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
        ids = int.from_bytes(self._ids[_BYTES * position : _BYTES * (position + 1)])
        task_id, run_id = UUID(int=ids >> 128), UUID(int=ids & _RUN)
        model = self._plain or object
        return SpawnResult(task_id, run_id, 1, True, TaskState.PENDING, True, model, self._attach)

    def __repr__(self) -> str:
        return f"<{len(self)} spawn results>"
