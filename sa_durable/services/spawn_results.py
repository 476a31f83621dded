"""Results of a batch of spawns, and the task objects that results give access to."""

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

_PAIR_BYTES = 32  # a task's id and a run's id
_RUN_ID_BITS = 2**128 - 1


class TaskAttacher:
    """Makes task objects that are attached to `session`, without a statement.

    Columns load when they are first read. It refers to the objects that it made, because a session keeps only
    weak references.
    """

    __slots__ = ("objects", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.objects: dict[UUID, DurableTask] = {}

    def __call__(self, model: Model, task_id: UUID) -> DurableTask:
        """Return the object of a task: the session's own, or a new one that is not loaded."""
        mapper = class_mapper(model)  # configures the mappers, if that has not happened yet
        key = mapper.identity_key_from_primary_key((task_id,))
        present: DurableTask | None = self.session.identity_map.get(key)
        if present is None:
            present = manager_of_class(model).new_instance()
            present.id = task_id
            make_transient_to_detached(present)
            self.session.add(present)
        self.objects[task_id] = present
        return present


class SpawnResults(Sequence[SpawnResult[R]]):
    """The results of a batch, in the order of its calls. A result is made each time it is read.

    Each call has two ids from the start, in the order of the calls: the task's and the run's. Nothing else is
    kept of a new pending task of the batch's first queue. So a million results take 32 MB instead of 300 MB,
    and the garbage collector doesn't visit them: a list of results took 30% more processor time of the whole
    spawn_many.
    """

    __slots__ = ("_attacher", "_explicit", "_first_model", "_ids")

    def __init__(self, attacher: TaskAttacher) -> None:
        self._attacher = attacher
        self._first_model: Model | None = None
        self._ids = bytearray()
        """`_PAIR_BYTES` for each position."""
        self._explicit: dict[int, SpawnResult[R]] = {}
        """The results that don't follow from their ids, by position."""

    def id_digits(self, positions: Sequence[int]) -> list[str]:
        """Return 64 hexadecimal digits for each position: 32 of a new task's id, 32 of its run's."""
        self._allocate(max(positions))
        ids = self._ids
        return [ids[_PAIR_BYTES * position : _PAIR_BYTES * (position + 1)].hex() for position in positions]

    def task_id(self, position: int) -> UUID:
        """Return the id of the new task."""
        return UUID(bytes=bytes(self._ids[_PAIR_BYTES * position : _PAIR_BYTES * position + 16]))

    def add_created(
        self, model: Model, positions: Iterable[int], state: str = TaskState.PENDING.value
    ) -> None:
        """Note that the calls at `positions` inserted tasks with their ids."""
        self._first_model = self._first_model or model
        if model is self._first_model and state == TaskState.PENDING.value:
            if self._explicit:
                for position in positions:
                    self._explicit.pop(position, None)  # left by an attempt that was undone
            return
        for position in positions:
            self.put(position, self._created(position, model, TaskState(state)))

    def put(self, position: int, result: SpawnResult[R]) -> None:
        """Set the result of the call at `position`, for example of a duplicate."""
        self._allocate(position)
        self._explicit[position] = result

    def _allocate(self, position: int) -> None:
        if (missing := position + 1 - len(self)) > 0:
            self._ids += uuid7_bytes(2 * missing)

    def __len__(self) -> int:
        return len(self._ids) // _PAIR_BYTES

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
        if (explicit := self._explicit.get(position)) is not None:
            return explicit
        return self._created(position, self._first_model or object, TaskState.PENDING)

    def _created(self, position: int, model: type[Any], state: TaskState) -> SpawnResult[R]:
        pair = int.from_bytes(self._ids[_PAIR_BYTES * position : _PAIR_BYTES * (position + 1)])
        task_id, run_id = UUID(int=pair >> 128), UUID(int=pair & _RUN_ID_BITS)
        return SpawnResult(task_id, run_id, 1, True, state, True, model, self._attacher)

    def __repr__(self) -> str:
        return f"<{len(self)} spawn results>"
