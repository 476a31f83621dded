"""Durable: everything that an application does with tasks, in a session's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session, scoped_session
from typing_extensions import Unpack

from ..errors import InvalidOptions
from ..handlers import Call
from ..models import DurableTask, queue_of
from ..values import SpawnKeywords, SpawnResult, TaskResult, TaskRun
from . import cancellation, events, history, keys, retries, spawn, spawn_many
from .operators import QueueOperations
from .references import as_call, task_ref

R = TypeVar("R")
M = TypeVar("M", bound=DurableTask)


class Durable(QueueOperations):
    """Spawn and manage tasks in the transaction of a session.

    Durable never commits, never rolls back and keeps no state: workers see a change once the caller commits,
    and a rollback undoes it. An error leaves the transaction usable, except RetryTransaction and
    SchemaOutdated.

    ::

        with Session(engine) as session, session.begin():
            session.add(order)
            Durable(session).spawn(charge.call(order_id=7), idempotency_key="charge:7")

    Methods that take a task accept the result of its spawn, a task object, or a queue's model and the task's
    id.

    Args:
        session: A Session or a scoped_session. AsyncDurable takes an AsyncSession.
    """

    __slots__ = ("session",)

    def __init__(self, session: Session | scoped_session[Any]) -> None:
        self.session: Session = session() if isinstance(session, scoped_session) else session
        if not isinstance(self.session, Session):
            raise InvalidOptions(
                f"Durable takes a Session or scoped_session, not {type(session).__name__}: "
                "for an AsyncSession there is AsyncDurable"
            )

    # Spawning

    @overload
    def spawn(self, call: Call[Any, R], /, **options: Unpack[SpawnKeywords]) -> SpawnResult[R]: ...
    @overload
    def spawn(
        self,
        queue: type[DurableTask],
        name: str,
        params: Mapping[str, Any],
        /,
        **options: Unpack[SpawnKeywords],
    ) -> SpawnResult[Any]: ...
    def spawn(self, *what: Any, **options: Unpack[SpawnKeywords]) -> SpawnResult[Any]:
        """Add a task, or return the task that holds its key.

        `what` is a call, `charge.call(order_id=7)`. Where the handler can't be imported, `what` is a queue's
        model, the task's name and its params: `spawn(BillingTask, "charge", {"order_id": 7})`.

        If another transaction is spawning the same key, this call waits until that transaction ends. Then it
        returns the task that was committed, or adds its own after a rollback.

        Options given here take precedence over those of `call.using()`, the handler and the queue.

        Args:
            *what: A call; or a queue's model, a name and a mapping of params.
            idempotency_key (str | None): Names the task, for example "charge:7": 1 to 255 characters, not
                starting with `~`. While a task of the queue holds the key, no second task is added. Default
                None: no key.
            only_once (bool): Derive the key from the task's name and params. Default False.
            hold (Hold | str): How long the task holds its key: "active" (until it has ended, the default),
                "queued" (until it first starts), "succeeded" (unless it fails or is cancelled) or "forever".
            key_ttl (timedelta | None): Frees the key this long after the spawn, or at the task's end if that
                is later; needs a hold of "succeeded" or "forever". Default None: never.
            on_duplicate (OnDuplicate | str): What to do if a task holds the key: "return" it (the default),
                "raise" DuplicateTask, "update" a holder that hasn't started, or "replace" it: cancel it and
                add this task.
            strict (bool): Raise IdempotencyConflict if the holder has other params. Default False.
            max_attempts (int | None): How many attempts the task has, from 1. Default 5. None: unlimited.
            retry (RetryPolicy): When the next attempt starts after a failure: NoRetry(), Fixed(...) or
                Exponential(...). Default Exponential().
            cancellation (Cancellation | None): Deadlines for the start and the end of the task. Default None:
                none.
            headers (Mapping[str, Json] | None): Metadata that the handler reads as `ctx.headers`; at most 64
                KiB of JSON. Default None.
            priority (int): -32768 to 32767; tasks with a lower priority are claimed first. Default 0.
            delay (timedelta | None): When the task is due, from the database's now on. Default None: at once.
            run_at (datetime | None): When the task is due, as an aware datetime; not together with `delay`.
                Default None.
            columns (Mapping[str, Any] | None): Values for your own columns of the task model, by attribute.
                Default None.
            **options: The options above.

        Returns:
            The task's ids and state; `created` is False if it is the holder of the key, which was there
            before.

        Raises:
            InvalidParams: The params don't fit the handler, or are no JSON. Nothing was sent.
            InvalidOptions: An option can't work. Nothing was sent.
            InvalidKey: The key can't be stored. Nothing was sent.
            IdempotencyConflict: A task of another name holds the key, or, with `strict`, one with other
                params.
            DuplicateTask: A task holds the key, and `on_duplicate` is "raise".
            RetryTransaction: A concurrent transaction has the key, at REPEATABLE READ or SERIALIZABLE; or a
                deadlock.
            SchemaOutdated: The database lacks a table, column or index. Nothing was sent.
        """
        return spawn.spawn(self.session, as_call(*what), options)

    def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> Sequence[SpawnResult[R]]:
        """Spawn a batch in a few statements. Each call has the result that `spawn` would give it.

        Equal keys within the batch are one task. An error undoes the whole batch, and nothing else of the
        transaction.

        Args:
            calls: The calls, for example a generator, also of millions: calls without a key are sent by the
                thousands as they come, and not kept. `call.using(idempotency_key=...)` gives a call options
                of its own.
            **options: Options for all calls, as `spawn` takes them.

        Returns:
            The results, in the order of the calls: a sequence that makes a result when it is read, and keeps
            32 bytes a task.

        Raises:
            InvalidParams, InvalidOptions, InvalidKey: As `spawn`.
            IdempotencyConflict, DuplicateTask, RetryTransaction, SchemaOutdated: As `spawn`.
        """
        return spawn_many.spawn_many(self.session, calls, options)

    # Keys

    def find_by_key(self, queue: type[M], key: str) -> M | None:
        """Return the task that holds a key, as an object of the session; None if the key is free.

        Args:
            queue: The queue's model, for example BillingTask.
            key: An idempotency_key, or a derived key from `once_key`.
        """
        return keys.find(self.session, queue_of(queue), key)

    def release_key(self, queue: type[DurableTask], key: str) -> bool:
        """Free a key: the next spawn with it adds a task. The holder goes on, and keeps the key as history.

        Returns:
            Whether a task held the key.
        """
        return keys.release(self.session, queue_of(queue), key)

    # Tasks

    @overload
    def result(self, task: SpawnResult[R], /) -> TaskResult[R]: ...
    @overload
    def result(self, task: DurableTask, /) -> TaskResult[Any]: ...
    @overload
    def result(self, queue: type[DurableTask], task_id: UUID, /) -> TaskResult[Any]: ...
    def result(self, *what: Any) -> TaskResult[Any]:
        """Return a task's state now, and its result or error if it has ended. Doesn't wait.

        The result has the handler's return type if the handler is imported here; otherwise it is plain JSON.

        Raises:
            TaskNotFound: The queue has no such task.
        """
        return spawn.result(self.session, *task_ref(*what))

    @overload
    def runs(self, task: SpawnResult[Any] | DurableTask, /) -> list[TaskRun]: ...
    @overload
    def runs(self, queue: type[DurableTask], task_id: UUID, /) -> list[TaskRun]: ...
    def runs(self, *what: Any) -> list[TaskRun]:
        """Return every attempt at a task, in order. The last one is the current or the final one.

        Raises:
            TaskNotFound: The queue has no such task.
        """
        return history.runs(self.session, *task_ref(*what))

    @overload
    def cancel(self, task: SpawnResult[Any] | DurableTask, /) -> bool: ...
    @overload
    def cancel(self, queue: type[DurableTask], task_id: UUID, /) -> bool: ...
    def cancel(self, *what: Any) -> bool:
        """Cancel a task and its descendants. Later writes of their workers are rejected.

        Returns:
            Whether the task was active. False if it had ended already.

        Raises:
            TaskNotFound: The queue has no such task.
        """
        return cancellation.cancel(self.session, *task_ref(*what))

    @overload
    def retry(
        self, task: SpawnResult[R], /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[R]: ...
    @overload
    def retry(
        self, task: DurableTask, /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[Any]: ...
    @overload
    def retry(
        self, queue: type[DurableTask], task_id: UUID, /, *, as_new: bool = False, detach: bool = False
    ) -> SpawnResult[Any]: ...
    def retry(self, *what: Any, as_new: bool = False, detach: bool = False) -> SpawnResult[Any]:
        """Give a failed or cancelled task another attempt.

        The task continues with its checkpoints. `max_attempts` is raised if necessary, and a `max_duration`
        starts again. Tasks that were cancelled with it stay cancelled: retry those that it joins, too.

        The task takes its key back, with the same `hold` and `key_ttl`.

        Args:
            *what: The task.
            as_new: Spawn a copy instead, without checkpoints: with the same name, params, headers, priority,
                limits and columns of your own; without parent and start time. The copy gets the key.
            detach: Continue without the key if another task holds it.

        Raises:
            TaskNotFound: The queue has no such task.
            InvalidState: The task has completed, or is still active.
            KeyTaken: Another task holds the key, and `detach` is False. Both tasks are untouched.
            RetryTransaction: As `spawn`.
        """
        return retries.retry(self.session, *task_ref(*what), as_new=as_new, detach=detach)

    # Events

    def emit_event(self, queue: type[DurableTask], name: str, payload: Any = None) -> None:
        """Emit an event: tasks of the queue that await it, now or later, get the payload.

        Workers see the event once the caller commits. The first event of a name counts, for good: later
        ones of the same name change nothing. So put into the name what makes it unique: "paid:order-7".
        Emitting takes no lock: a transaction that stays open blocks nothing.

        Args:
            queue: The queue's model.
            name: 1 to 255 printable characters, not starting with `$`.
            payload: JSON, or a value that pydantic can write as JSON.

        Raises:
            InvalidEvent: The name or the payload can't be stored. Nothing was sent.
        """
        events.emit(self.session, queue_of(queue), name, payload)
