"""The words of sa_durable as values: enums, frozen dataclasses and the table of state transitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeAlias, TypedDict, TypeVar
from uuid import UUID

Json: TypeAlias = Any  # None, bool, int, float, str, list and dict of these, with string keys
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class TaskState(StrEnum):
    """Where a task is. `completed`, `failed` and `cancelled` are terminal: it is over."""

    PENDING = "pending"
    RUNNING = "running"
    SLEEPING = "sleeping"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
ACTIVE = frozenset(TaskState) - TERMINAL


class Operation(StrEnum):
    """What can happen to a task. Nothing else changes its state."""

    SPAWN = "spawn"
    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    SLEEP = "sleep"
    WAKE = "wake"
    RELEASE = "release"
    SWEEP = "sweep"
    CANCEL = "cancel"
    RETRY = "retry"


_S = TaskState
# From which state a verb leads to which: the documentation's diagram is made from this table, and a test
# records the transitions that the database sees and compares.
TRANSITIONS: Mapping[tuple[TaskState | None, Operation], frozenset[TaskState]] = {
    (None, Operation.SPAWN): frozenset({_S.PENDING, _S.SLEEPING}),
    (_S.PENDING, Operation.SPAWN): frozenset(
        {_S.PENDING, _S.SLEEPING}
    ),  # on_duplicate="update": a new schedule
    (_S.SLEEPING, Operation.SPAWN): frozenset({_S.PENDING, _S.SLEEPING}),
    (_S.PENDING, Operation.CLAIM): frozenset({_S.RUNNING}),
    (_S.RUNNING, Operation.COMPLETE): frozenset({_S.COMPLETED}),
    # Cancelled: it would have gone on after its `max_duration`.
    (_S.RUNNING, Operation.FAIL): frozenset({_S.PENDING, _S.SLEEPING, _S.FAILED, _S.CANCELLED}),
    (_S.RUNNING, Operation.SLEEP): frozenset({_S.SLEEPING}),
    (_S.SLEEPING, Operation.WAKE): frozenset({_S.PENDING}),
    (_S.RUNNING, Operation.RELEASE): frozenset({_S.PENDING}),  # a worker shuts down: the attempt is not burnt
    # The lease ran out; or the time to start, or to end, is over.
    (_S.RUNNING, Operation.SWEEP): frozenset({_S.PENDING, _S.FAILED, _S.CANCELLED}),
    (_S.PENDING, Operation.SWEEP): frozenset({_S.CANCELLED}),
    (_S.SLEEPING, Operation.SWEEP): frozenset({_S.CANCELLED}),
    (_S.PENDING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.RUNNING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.SLEEPING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.FAILED, Operation.RETRY): frozenset({_S.PENDING}),
    (_S.CANCELLED, Operation.RETRY): frozenset({_S.PENDING}),
}


class Hold(StrEnum):
    """Which states of a key's holder block the key for others."""

    ACTIVE = "active"  # while the holder is not terminal
    QUEUED = "queued"  # until the holder first starts
    SUCCEEDED = "succeeded"  # while active or completed; failed or cancelled frees the key
    FOREVER = "forever"  # until the row is deleted or the key released


class OnDuplicate(StrEnum):
    """What a spawn does when its key is held by a task of the same name."""

    RETURN = "return"  # the existing task
    RAISE = "raise"  # DuplicateTask; nothing is written
    UPDATE = "update"  # the holder takes the new params and schedule if it hasn't started; else as return
    REPLACE = "replace"  # the holder and its descendants are cancelled, the new task is spawned


@dataclass(frozen=True, slots=True)
class NoRetry:
    """One attempt: the first failure is final."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The next attempt starts `delay` after a failure, less a random part of up to `jitter` (0 to 1) of it."""

    delay: timedelta = timedelta(seconds=30)
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Exponential:
    """The n-th failure is followed by `base * factor ** (n - 1)`, at most `cap`, less a random part of up to
    `jitter` (0 to 1) of it: a crowd that failed together doesn't come back together."""

    base: timedelta = timedelta(seconds=5)
    factor: float = 2.0
    cap: timedelta = timedelta(minutes=5)
    jitter: float = 0.2


RetryPolicy: TypeAlias = NoRetry | Fixed | Exponential
DEFAULT_RETRY = Exponential()
DEFAULT_MAX_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Cancellation:
    """When a task is given up: cancelled, with all that descends from it.

    `start_within`: from when it is due (now, or its `run_at` or `delay`) to its first start. `max_duration`: from its
    first start to its end, over all attempts and sleeps. None: no limit.
    """

    start_within: timedelta | None = None
    max_duration: timedelta | None = None


class HandlerKeywords(TypedDict, total=False):
    """The spawn options that a handler or a queue can have a default for: all but those about one task."""

    only_once: bool
    hold: Hold | str
    key_ttl: timedelta | None
    on_duplicate: OnDuplicate | str
    strict: bool
    max_attempts: int | None
    retry: RetryPolicy
    cancellation: Cancellation | None
    headers: Mapping[str, Json] | None
    priority: int
    delay: timedelta | None


class SpawnKeywords(HandlerKeywords, total=False):
    """The keyword arguments of `spawn`: the fields of SpawnOptions."""

    idempotency_key: str | None
    run_at: datetime | None
    columns: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpawnOptions:
    """How a task is spawned, with every default in place. Made by `policy.resolve`, which checks it."""

    only_once: bool = False  # the key is derived from the task's name and params
    idempotency_key: str | None = None  # explicit; takes precedence over only_once
    hold: Hold = Hold.ACTIVE
    key_ttl: timedelta | None = None  # from spawn; with hold "succeeded" or "forever"
    on_duplicate: OnDuplicate = OnDuplicate.RETURN
    strict: bool = False  # same key, other params: IdempotencyConflict
    max_attempts: int | None = DEFAULT_MAX_ATTEMPTS  # None: unlimited
    retry: RetryPolicy = DEFAULT_RETRY
    cancellation: Cancellation | None = None
    headers: Mapping[str, Json] | None = None
    priority: int = 0  # -32768 to 32767, lower first
    delay: timedelta | None = None  # from the database's now
    run_at: datetime | None = None  # aware; instead of delay
    columns: Mapping[str, Any] | None = None  # the application's own columns of the task model


@dataclass(frozen=True, slots=True)
class SpawnResult(Generic[R_co]):
    """The task that a spawn created or found. The ids are those of a row that exists."""

    task_id: UUID
    run_id: UUID
    attempt: int
    created: bool  # False: an existing task holds the key
    state: TaskState
    params_match: bool = True  # False: the existing task has other params
    model: type[Any] = field(default=object, repr=False, compare=False)
    _attach: Callable[[type[Any], UUID], Any] | None = field(default=None, repr=False, compare=False)

    @property
    def task(self) -> Any:
        """The task as an object attached to the session that spawned it, for relationships and queries.

        Costs no statement: its columns are loaded when they are first read (on an AsyncSession, await
        `session.refresh(spawned.task)` before reading them).
        """
        if self._attach is None:
            raise LookupError("this SpawnResult is detached from its session: query the task by its task_id")
        return self._attach(self.model, self.task_id)

    def __reduce__(self) -> tuple[Any, ...]:
        # A session doesn't travel between processes; everything else does.
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
    """Why a run ended without a result, as stored: the exception's type, message and traceback, and the fields that it
    declares.

    Those of `Fail("card declined", code="51")` are `{"code": "51"}`. Another exception says which of its attributes are
    stored: a class attribute `__durable_fields__ = ("code",)`. Nothing is taken from exceptions that don't: what
    libraries keep in theirs (requests, with their headers) is nobody's business. All of it is bounded in size.
    """

    type: str
    message: str
    traceback: str | None = None
    fields: Mapping[str, Json] | None = field(default=None, hash=False)

    def to_json(self) -> dict[str, Json]:
        stored = {"type": self.type, "message": self.message, "traceback": self.traceback}
        return {**stored, "fields": dict(self.fields)} if self.fields else stored

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> TaskError:
        traceback, fields = value.get("traceback"), value.get("fields")
        return cls(str(value.get("type")), str(value.get("message")), traceback, fields)


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[R_co]):
    """How a task stands: its state, and the result or the error it ended with."""

    task_id: UUID
    state: TaskState
    attempt: int
    value: R_co | None = None  # of the handler's return type, once completed
    error: TaskError | None = None  # once failed: of the last attempt (earlier ones are in task.runs)


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One attempt at a task: an ended one, or the current one."""

    run_id: UUID
    attempt: int  # from 1
    state: TaskState  # of the current one: the task's
    worker: str | None  # None: nobody has started it
    started_at: datetime | None
    ended_at: datetime | None
    lease_expires_at: datetime | None  # of an ended one: at its end
    error: TaskError | None


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """How many rows a clean-up deleted; a task's history, checkpoints and waits aren't counted."""

    tasks: int
    events: int


class Claim(NamedTuple):  # made for every task: a frozen dataclass takes five times as long
    """A worker's right to run a task, proved by `token` in every write."""

    queue: str
    task_id: UUID
    run_id: UUID
    name: str
    params: Json
    headers: Mapping[str, Json] | None
    attempt: int
    max_attempts: int | None
    retry: Mapping[str, Json] | None
    token: int
    resumed: bool  # claimed before: there may be checkpoints

    def __repr__(self) -> str:  # what the task carries is nobody's business in a log
        return f"<claim {self.token} of task {self.task_id} ({self.name!r}), attempt {self.attempt}>"
