"""Exceptions: errors for callers (DurableError) and control flow inside handlers (Signal)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from .values import TaskError, TaskState


class DurableError(Exception):
    """Base class of all errors of sa_durable.

    Unless an error says otherwise, nothing was written, and the caller's transaction can continue. All errors
    can be pickled and copied, with their attributes.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[DurableError], args: tuple[Any, ...], attributes: dict[str, Any]) -> DurableError:
    """Make an error without calling its `__init__`, whose parameters differ from class to class."""
    error = cls.__new__(cls)
    error.args = args
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class DeclarationError(DurableError, TypeError):
    """A queue or a handler is declared in a way that can't work. Raised at the declaration."""


class UnknownQueue(DurableError, LookupError):
    """A value that is no queue was passed as one. Pass a DurableTask class with `__queue__`."""


class TaskNotFound(DurableError, LookupError):
    """The queue has no task with this id: it was never spawned, rolled back, or cleaned up."""

    def __init__(self, queue: str, task_id: UUID) -> None:
        super().__init__(
            f"queue {queue!r} has no task {task_id}: it was never spawned, rolled back, or cleaned up"
        )
        self.queue = queue
        self.task_id = task_id


class InvalidOptions(DurableError, ValueError):
    """A spawn option has a value that can't work, or two options exclude each other. Nothing was sent."""


class InvalidKey(InvalidOptions):
    """An idempotency key can't be stored. Nothing was sent.

    A key has 1 to 255 characters and no NUL, and doesn't start with `~`, which is reserved for derived keys.
    """


class InvalidParams(DurableError, ValueError):
    """Arguments don't fit the handler's signature, or can't be stored as JSON. Nothing was sent."""


class DuplicateTask(DurableError):
    """A task of the same name holds the key, and the spawn had `on_duplicate="raise"`.

    Nothing was written; the holder `task_id` is untouched. Spawn with `on_duplicate="return"` to get the
    holder instead.
    """

    def __init__(self, queue: str, key: str, task_id: UUID, state: str) -> None:
        super().__init__(
            f"key {key!r} in queue {queue!r} is held by task {task_id} ({state}). That task is untouched. "
            'Use on_duplicate="return" to get it instead.'
        )
        self.queue = queue
        self.key = key
        self.task_id = task_id
        self.state = state


class IdempotencyConflict(DurableError):
    """The key is held by a task of another name or, with `strict`, of other params.

    Nothing was written; the holder `task_id` is untouched. Use another key, or spawn the task that the key
    was first used for.
    """

    def __init__(self, queue: str, key: str, task_id: UUID, reason: str) -> None:
        super().__init__(
            f"key {key!r} in queue {queue!r} is held by task {task_id} {reason}. That task is untouched. "
            "Use another key, or spawn the same task."
        )
        self.queue = queue
        self.key = key
        self.task_id = task_id
        self.reason = reason


class KeyTaken(DurableError):
    """A task can't be retried with its key, because another task, `task_id`, holds the key now.

    Both tasks are untouched. Retry with `detach=True` to leave the key to its holder, or check the holder
    first: it may have done the work.
    """

    def __init__(self, queue: str, key: str, task_id: UUID, state: str) -> None:
        super().__init__(
            f"key {key!r} in queue {queue!r} is held by task {task_id} ({state}) now. "
            "Both tasks are untouched. Retry with detach=True to continue without the key."
        )
        self.queue = queue
        self.key = key
        self.task_id = task_id
        self.state = state


class InvalidState(DurableError):
    """The task is in a state, `state`, that doesn't allow the operation. The task is untouched."""

    def __init__(self, queue: str, task_id: UUID, state: str, rule: str) -> None:
        super().__init__(f"task {task_id} in queue {queue!r} is {state}: {rule}. The task is untouched.")
        self.queue = queue
        self.task_id = task_id
        self.state = state
        self.rule = rule


class KeyedObject(DurableError, TypeError):
    """An idempotency key was set on a task object.

    A flush would answer a duplicate with a unique violation. Use `Durable(session).spawn(call,
    idempotency_key=...)`, and `spawned.task` for the object.
    """


class RetryTransaction(DurableError):
    """PostgreSQL can't continue this transaction, but running the transaction again can succeed.

    The call wrote nothing. Roll back, then run the whole transaction again.
    """

    retryable = True
    """Marks errors after which the transaction can be run again."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        """PostgreSQL's code: 40001 (at REPEATABLE READ or SERIALIZABLE, a concurrent transaction took the
        key) or 40P01 (deadlock). None: sa_durable gave up itself.
        """


class SchemaOutdated(DurableError):
    """The database lacks a table, column or index that this version needs. Run `alembic upgrade head`."""


class MissingExtra(DurableError, ImportError):
    """A part of sa_durable needs packages that aren't installed. The message has the pip command."""

    def __reduce__(self) -> tuple[Any, ...]:
        slots = {"name": self.name, "path": self.path, "msg": self.msg}  # ImportError's, not in __dict__
        return _restore, (type(self), self.args, {**self.__dict__, **slots})


class InvalidResult(DurableError, ValueError):
    """A handler or a step returned a value that can't be stored as JSON. The task fails, without a retry."""


class InvalidEvent(DurableError, ValueError):
    """The name or the payload of an event can't be stored. Nothing was sent."""


class Fail(DurableError):
    """Raise this in a handler, a step or a transaction to fail the task at once, without further attempts.

    ::

        raise Fail("card declined", code="51")

    The message and the fields are stored in `TaskError.fields` and shown to everyone who reads or joins the
    task: put ids and codes there, but no secrets. Fields are JSON, or values that pydantic can convert to
    JSON.

    To fail tasks with errors of your own, subclass Fail, or list their classes in a handler's
    `non_retryable`.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


class TimedOut(DurableError, TimeoutError):
    """An awaited event or task didn't come in time.

    In a handler, the timeout is recorded: a replay raises TimedOut at once. From `wait_for`, `state` is the
    state of the task, which continues.
    """

    def __init__(self, message: str, *, state: TaskState | None = None) -> None:
        super().__init__(message)
        self.state = state


class TaskFailed(DurableError):
    """A joined task, `task_id`, has failed with `error`."""

    def __init__(self, task_id: UUID, error: TaskError) -> None:
        super().__init__(f"task {task_id} failed: {error.type}: {error.message}")
        self.task_id = task_id
        self.error = error


class TaskCancelled(DurableError):
    """A joined task, `task_id`, was cancelled."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(f"task {task_id} was cancelled")
        self.task_id = task_id


class StepMisuse(DurableError, ValueError):
    """A step was completed twice, completed by another run than began it, or read before it was done.

    Nothing was written.
    """


class NoContext(DurableError, LookupError):
    """`current_context()` was called outside a handler, or in a handler of the other kind (sync or async)."""


class Signal(BaseException):
    """Control flow of a run. A BaseException, so that `except Exception` in a handler can't swallow it."""


class Suspend(Signal):
    """Stop this run here and resume it later."""


class Cancelled(Signal):
    """The task was cancelled. Everything that this run still writes is rejected."""


class LeaseLost(Signal):
    """The claim is no longer valid, and another worker may run the task. Stop, and write nothing."""
