"""The models beside a task model: its Run, Checkpoint, Event and Wait, and the Base's Queue.

They are mapped imperatively on the Base's registry. So columns, defaults and dataclass options that an
application puts on its Base stay out of the library's own tables.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.orm import Mapped

from ..values import Json

if TYPE_CHECKING:
    from .task import DurableTask


class _Record:
    """A row beside the tasks. Applications read and join such rows; only sa_durable writes them."""

    if TYPE_CHECKING:
        __table__: ClassVar[Table]

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        key = getattr(self, "id", None) or getattr(self, "name", None)
        return f"<{type(self).__qualname__} {key}>"


class DurableRun(_Record):
    """An attempt that ended without completing its task. The task itself has the current one."""

    if TYPE_CHECKING:
        id: Mapped[UUID]
        task_id: Mapped[UUID]
        attempt: Mapped[int]
        """From 1."""
        state: Mapped[str]
        """`failed` or `cancelled`."""
        worker: Mapped[str | None]
        """Id of the worker that ran it; NULL if it never started."""
        started_at: Mapped[datetime | None]
        lease_expires_at: Mapped[datetime | None]
        """The lease at the end of the run; in the past if the worker was lost."""
        ended_at: Mapped[datetime]
        error: Mapped[dict[str, Json] | None]
        """A TaskError as JSON."""
        task: Mapped[DurableTask]


class DurableCheckpoint(_Record):
    """The saved value of a task's step."""

    if TYPE_CHECKING:
        task_id: Mapped[UUID]
        name: Mapped[str]
        """The step's name. Repeated names end in `#2`, `#3`."""
        value: Mapped[Json]
        attempt: Mapped[int]
        """Number of the attempt that ran the step."""
        created_at: Mapped[datetime]


class DurableEvent(_Record):
    """A named fact with a payload. The earliest row of a name is the event; later ones are dropped."""

    if TYPE_CHECKING:
        id: Mapped[UUID]
        name: Mapped[str]
        payload: Mapped[Json]
        emitted_at: Mapped[datetime]
        settled_at: Mapped[datetime | None]
        """When a worker decided which row of the name is the event, and marked the waits for it."""
        dropped: Mapped[bool]
        """True: an earlier row of this name is the event."""


class DurableWait(_Record):
    """A task's registration for an event."""

    if TYPE_CHECKING:
        task_id: Mapped[UUID]
        step: Mapped[str]
        """Name of the checkpoint that the event will be saved as. Waits of one step end together."""
        event_name: Mapped[str]
        event_queue: Mapped[str]
        """Queue of the event: the task's own queue, or the queue of a task that it joins."""
        timeout_at: Mapped[datetime | None]
        created_at: Mapped[datetime]
        settled: Mapped[bool]
        """True: the event is settled, and a worker will wake the task."""


class DurableQueue(_Record):
    """Settings of a queue. A queue without a row has the defaults."""

    if TYPE_CHECKING:
        name: Mapped[str]
        paused_at: Mapped[datetime | None]
        """While it is set, workers claim no tasks of the queue."""
        retention: Mapped[timedelta | None]
        """How long workers keep ended tasks and settled events; NULL: until `clean_up` is called."""
        notify_until: Mapped[datetime | None]
        """Until then, an idle worker wants to be notified of new tasks."""
