"""What stands beside a task model: its Run, Checkpoint, Event and Wait, and the Base's Queue.

They are mapped imperatively on the Base's registry, so that columns, defaults and dataclass options that an
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
    """A row of a table beside the tasks'. Applications read and join them; sa_durable writes them."""

    if TYPE_CHECKING:
        __table__: ClassVar[Table]

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        key = getattr(self, "id", None) or getattr(self, "name", None)
        return f"<{type(self).__qualname__} {key}>"


class DurableRun(_Record):
    """An attempt that ended without completing its task: history. The current attempt is on the task itself."""

    if TYPE_CHECKING:
        id: Mapped[UUID]
        task_id: Mapped[UUID]
        attempt: Mapped[int]
        """From 1."""
        state: Mapped[str]
        """`failed` or `cancelled`."""
        worker: Mapped[str | None]
        """Who ran it; NULL if nobody had started it."""
        started_at: Mapped[datetime | None]
        lease_expires_at: Mapped[datetime | None]
        """The lease at its end; in the past where the worker was lost."""
        ended_at: Mapped[datetime]
        error: Mapped[dict[str, Json] | None]
        """Type, message and traceback."""
        task: Mapped[DurableTask]


class DurableCheckpoint(_Record):
    """The saved value of a task's step."""

    if TYPE_CHECKING:
        task_id: Mapped[UUID]
        name: Mapped[str]
        """The step's name; repeated ones end in `#2`, `#3`."""
        value: Mapped[Json]
        attempt: Mapped[int]
        """Which attempt ran the step."""
        created_at: Mapped[datetime]


class DurableEvent(_Record):
    """A named fact with a payload. The earliest row of a name is the event; later ones are dropped."""

    if TYPE_CHECKING:
        id: Mapped[UUID]
        name: Mapped[str]
        payload: Mapped[Json]
        emitted_at: Mapped[datetime]
        settled_at: Mapped[datetime | None]
        """When a worker gave it to those who wait for it."""
        dropped: Mapped[bool]
        """An earlier one of this name was first."""


class DurableWait(_Record):
    """A task's registration for an event."""

    if TYPE_CHECKING:
        task_id: Mapped[UUID]
        step: Mapped[str]
        """The checkpoint that the event will be saved as. Waits of one step end together."""
        event_name: Mapped[str]
        event_queue: Mapped[str]
        """Where the event is emitted: the task's own queue, or that of a task it joins."""
        timeout_at: Mapped[datetime | None]
        created_at: Mapped[datetime]
        settled: Mapped[bool]
        """The event is there; the task is woken next."""


class DurableQueue(_Record):
    """What operators say about a queue. A queue without a row has the defaults."""

    if TYPE_CHECKING:
        name: Mapped[str]
        paused_at: Mapped[datetime | None]
        """While set, workers claim nothing from the queue."""
        retention: Mapped[timedelta | None]
        """How long ended tasks and settled events are kept; NULL: until somebody cleans up."""
        notify_until: Mapped[datetime | None]
        """Until then a worker is idle and wants to be notified of new tasks."""
