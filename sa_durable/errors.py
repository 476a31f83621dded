"""Facts that callers handle (DurableError) and signals that unwind a handler (Signal)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from .values import TaskError, TaskState


class DurableError(Exception):
    """Base of every error of sa_durable. Unless an error says otherwise, nothing was written and the caller's
    transaction can go on."""


class DeclarationError(DurableError, TypeError):
    """A queue or a handler is declared in a way that can't work. Raised where it is declared."""


class UnknownQueue(DurableError, LookupError):
    """Something that is no queue was used as one. A queue is a DurableTask class with `__queue__`."""


class TaskNotFound(DurableError, LookupError):
    """No task has this id in this queue: never spawned, rolled back, or cleaned up."""

    def __init__(self, queue: str, task_id: UUID) -> None:
        super().__init__(f"queue {queue!r} has no task {task_id}: never spawned, rolled back, or cleaned up")
        self.queue, self.task_id = queue, task_id


class InvalidOptions(DurableError, ValueError):
    """A spawn option has a value that can't work, or two of them exclude each other. Nothing was sent."""


class InvalidKey(InvalidOptions):
    """An idempotency key must have 1 to 255 characters, no NUL, and not start with the reserved `~`."""


class InvalidParams(DurableError, ValueError):
    """Arguments don't fit the handler's signature, or can't be stored as JSON. Nothing was sent."""


class DuplicateTask(DurableError):
    """A task holds the key, and the spawn asked to `raise`. The holder is untouched."""

    def __init__(self, queue: str, key: str, task_id: UUID, state: str) -> None:
        super().__init__(
            f"key {key!r} of queue {queue!r} is held by task {task_id} ({state}); it is untouched. "
            'Use on_duplicate="return" to get it instead'
        )
        self.queue, self.key, self.task_id, self.state = queue, key, task_id, state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.key, self.task_id, self.state)


class IdempotencyConflict(DurableError):
    """A key is held by a task of another name, or, with `strict`, of other params. The holder is untouched: use
    another key, or spawn what it was first used for."""

    def __init__(self, queue: str, key: str, task_id: UUID, reason: str) -> None:
        super().__init__(
            f"key {key!r} of queue {queue!r} is held by task {task_id} {reason}; it is untouched. "
            "Use another key, or spawn the same task"
        )
        self.queue, self.key, self.task_id, self.reason = queue, key, task_id, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.key, self.task_id, self.reason)


class KeyTaken(DurableError):
    """A task can't be retried with its key: another task, `task_id`, holds it by now. Both are untouched: retry with
    `detach=True`, which leaves the key to its holder, or see what became of that one."""

    def __init__(self, queue: str, key: str, task_id: UUID, state: str) -> None:
        super().__init__(
            f"key {key!r} of queue {queue!r} is held by task {task_id} ({state}) by now; both tasks are untouched. "
            "Retry with detach=True to go on without the key"
        )
        self.queue, self.key, self.task_id, self.state = queue, key, task_id, state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.key, self.task_id, self.state)


class InvalidState(DurableError):
    """A task is not in a state that allows this; `state` is the one that it is in. It is untouched."""

    def __init__(self, queue: str, task_id: UUID, state: str, rule: str) -> None:
        super().__init__(f"task {task_id} of queue {queue!r} is {state}: {rule}; it is untouched")
        self.queue, self.task_id, self.state, self.rule = queue, task_id, state, rule

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.queue, self.task_id, self.state, self.rule)


class KeyedObject(DurableError, TypeError):
    """A key was set on a task object. A flush would answer a duplicate with a unique violation: use
    `Durable(session).spawn(call, idempotency_key=...)`, and `spawned.task` for the object."""


class RetryTransaction(DurableError):
    """PostgreSQL can't go on with this transaction, and running it again can succeed. Nothing was written by the
    call; roll back, then run the whole transaction again.

    `sqlstate` is PostgreSQL's code: 40001 (a concurrent transaction at REPEATABLE READ or SERIALIZABLE took the
    key) or 40P01 (deadlock); or None where the library gave up itself.
    """

    retryable = True

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class SchemaOutdated(DurableError):
    """The database lacks a table, column or index that this version needs. Run `alembic upgrade head`."""


class MissingExtra(DurableError, ImportError):
    """A part of sa_durable needs packages that aren't installed; the message has the pip command."""


class InvalidResult(DurableError, ValueError):
    """A handler's or a step's return value can't be stored as JSON. Retrying would not help: the task fails."""


class Fail(DurableError):
    """Raised by a handler, a step or a transaction to end the task at once, with no further attempt.

    ::

        raise Fail("card declined", code="51")

    The message and the fields are stored (`TaskError.fields`) and reach whoever looks at the task or joins it: ids and
    codes belong there, secrets don't. Fields are JSON, or what pydantic makes JSON of. An application's own errors
    can do the same: subclass this, or name them in a handler's `non_retryable`.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


class LeaseExpired(DurableError):
    """A worker stopped extending its lease (it crashed, hung or lost the database) and the task was taken away.
    Only ever stored, as the error of the run that ended so."""


class HandlerTimeout(DurableError, TimeoutError):
    """An execution took longer than its handler's `timeout`. Only ever stored, as the error of the run that ended so."""


class Signal(BaseException):
    """Control flow of a run. A BaseException, so that `except Exception` in a handler can't swallow it."""


class Suspend(Signal):
    """Stop this run here and resume it later."""


class Cancelled(Signal):
    """The task was cancelled; whatever this run still writes is rejected."""


class LeaseLost(Signal):
    """The claim is no longer valid: another worker may run the task. Stop, touch nothing."""


class InvalidEvent(DurableError, ValueError):
    """An event's name or payload can't be stored. Nothing was sent."""


class TimedOut(DurableError, TimeoutError):
    """What was waited for didn't come in time. In a handler that is remembered: a replay sees it again, at once. From
    `wait_for`, `state` is the task's: it goes on."""

    def __init__(self, message: str, *, state: TaskState | None = None) -> None:
        super().__init__(message)
        self.state = state


class TaskFailed(DurableError):
    """A task that was joined has failed; `task_id` is its id and `error` what it failed with."""

    def __init__(self, task_id: UUID, error: TaskError) -> None:
        super().__init__(f"task {task_id} failed: {error.type}: {error.message}")
        self.task_id, self.error = task_id, error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.error)


class TaskCancelled(DurableError):
    """A task that was joined was cancelled; `task_id` is its id."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(f"task {task_id} was cancelled")
        self.task_id = task_id

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id,)


class StepMisuse(DurableError, ValueError):
    """A step was completed twice, by another run than began it, or read before it was done. Nothing was written."""


class NoContext(DurableError, LookupError):
    """`current_context()` was called where no handler runs, or one of the other kind."""
