"""What operations return: spawned tasks, results, errors, runs and claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar
from uuid import UUID

from .json import Json
from .states import TaskState

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class SpawnResult(Generic[R_co]):
    """The task that a spawn created or found."""

    task_id: UUID
    """Id of the task, whose row exists."""
    run_id: UUID
    """Id of the task's current run."""
    attempt: int
    """Number of the current run, from 1."""
    created: bool
    """False: the key was held by the existing task."""
    state: TaskState
    """State of the task."""
    params_match: bool = True
    """False: the existing task has other params."""
    model: type[Any] = field(default=object, repr=False, compare=False)
    """The task model of the queue."""
    _attach: Callable[[type[Any], UUID], Any] | None = field(default=None, repr=False, compare=False)

    @property
    def task(self) -> Any:
        """The task as an object attached to the session that spawned it, for relationships and queries.

        Costs no statement: its columns are loaded when they are first read. On an AsyncSession, await
        `session.refresh(spawned.task)` before you read them.
        """
        if self._attach is None:
            raise LookupError("this SpawnResult is detached from its session: query the task by its task_id")
        return self._attach(self.model, self.task_id)

    def __reduce__(self) -> tuple[Any, ...]:
        # A session can't be pickled. Everything else is.
        return (
            type(self),
            (
                self.task_id,
                self.run_id,
                self.attempt,
                self.created,
                self.state,
                self.params_match,
                self.model,
            ),
        )


@dataclass(frozen=True, slots=True)
class TaskError:
    """The stored error of a run that failed or was cancelled. Its size is bounded.

    `Fail("card declined", code="51")` stores the fields `{"code": "51"}`. Another exception class names the
    attributes to store in a class attribute: `__durable_fields__ = ("code",)`. Nothing is stored from other
    exceptions: exceptions of libraries may carry secrets, such as request headers.
    """

    LEASE_EXPIRED: ClassVar[str] = "LeaseExpired"
    """Type of the error of a run whose worker stopped extending its lease: it crashed, hung or lost the
    database.
    """
    HANDLER_TIMEOUT: ClassVar[str] = "HandlerTimeout"
    """Type of the error of a run that took longer than its handler's `timeout`."""
    DEADLINE_EXCEEDED: ClassVar[str] = "DeadlineExceeded"
    """Type of the error of a task that was cancelled past its `start_within` or `max_duration`."""

    type: str
    """Name of the exception's class, or one of the constants above."""
    message: str
    """The exception as text."""
    traceback: str | None = None
    """The traceback as text; None for errors without one."""
    fields: Mapping[str, Json] | None = field(default=None, hash=False)
    """The attributes that the exception's class names."""

    def to_json(self) -> dict[str, Json]:
        """Return the error as it is stored."""
        stored = {"type": self.type, "message": self.message, "traceback": self.traceback}
        return {**stored, "fields": dict(self.fields)} if self.fields else stored

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> TaskError:
        """Return the error that `to_json` stored."""
        traceback, fields = value.get("traceback"), value.get("fields")
        return cls(str(value.get("type")), str(value.get("message")), traceback, fields)


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[R_co]):
    """The state of a task, and the result or the error that it ended with."""

    task_id: UUID
    """Id of the task."""
    state: TaskState
    """State of the task."""
    attempt: int
    """Number of the current run, or of the last one, from 1."""
    value: R_co | None = None
    """What the handler returned, once the task is completed."""
    error: TaskError | None = None
    """Error of the last attempt, once the task has failed. Those of earlier attempts are in `task.runs`."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One attempt at a task: an attempt that ended, or the current one."""

    run_id: UUID
    """Id of the run."""
    attempt: int
    """Number of the run, from 1."""
    state: TaskState
    """How the run ended; for the current run, the state of the task."""
    worker: str | None
    """Id of the worker that ran it. None: the run hasn't started."""
    started_at: datetime | None
    """When the run was claimed."""
    ended_at: datetime | None
    """When the run ended."""
    lease_expires_at: datetime | None
    """When the worker's lease expires; for a run that ended, the lease at its end."""
    error: TaskError | None
    """Why the run failed or was cancelled."""


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """How many rows a clean-up deleted. A task's history, checkpoints and waits aren't counted."""

    tasks: int
    """Number of deleted tasks."""
    events: int
    """Number of deleted events."""


# A NamedTuple: a worker makes one for every task, and a frozen dataclass takes five times as long (measured).
class Claim(NamedTuple):
    """A worker's right to run a task. Every write of the worker proves it by `token`."""

    queue: str
    """Name of the queue."""
    task_id: UUID
    """Id of the task."""
    run_id: UUID
    """Id of the current run."""
    name: str
    """Name of the task, which is its handler's."""
    params: Json
    """The handler's arguments."""
    headers: Mapping[str, Json] | None
    """Metadata of the task."""
    attempt: int
    """Number of the current run, from 1."""
    max_attempts: int | None
    """How many attempts the task has. None: unlimited."""
    retry: Mapping[str, Json] | None
    """The retry policy as it is stored."""
    token: int
    """Fencing token: raised by every claim of the task and everything that ends one."""
    resumed: bool
    """Whether the task was claimed before, so that it may have checkpoints."""

    def __repr__(self) -> str:
        # Without the params and headers, which may be private: claims are logged.
        return f"<claim {self.token} of task {self.task_id} ({self.name!r}), attempt {self.attempt}>"
