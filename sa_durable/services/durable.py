"""Durable: the spawn service of a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session, scoped_session
from typing_extensions import Unpack

from ..errors import InvalidOptions, UnknownQueue
from ..handlers import Call, call_by_name
from ..models import DurableTask, queue_of
from ..values import SpawnKeywords, SpawnResult, TaskResult
from . import batches, cancellation, keys, tasks

R = TypeVar("R")
M = TypeVar("M", bound=DurableTask)


class Durable:
    """Spawn tasks in `session`, in the transaction that it is in.

    It never commits, never rolls back and keeps nothing: workers see what was spawned once the caller commits, and a
    rollback takes it back. Every error leaves the transaction usable, but for RetryTransaction and SchemaOutdated.

    ::

        with Session(engine) as session, session.begin():
            session.add(order)
            Durable(session).spawn(charge.call(order_id=7), idempotency_key="charge:7")
    """

    __slots__ = ("session",)

    def __init__(self, session: Session | scoped_session[Any]) -> None:
        self.session: Session = session() if isinstance(session, scoped_session) else session
        if not isinstance(self.session, Session):
            raise InvalidOptions(
                f"Durable takes a Session or scoped_session, not {type(session).__name__}: "
                "for an AsyncSession there is AsyncDurable"
            )

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
        """Add a task, or find the one that its key already names.

        `what` is a call, `charge.call(order_id=7)`, or, where the handler can't be imported, a queue's model, the
        task's name and its params: `spawn(BillingTask, "charge", {"order_id": 7})`.

        With `idempotency_key` (or `only_once`, which derives one from name and params) a task that holds the key is
        returned instead, `created` False, and nothing is written: see SpawnOptions for `hold`, `key_ttl`,
        `on_duplicate` and `strict`. If another transaction is just spawning the same key, this waits until that one
        ends: it commits, and its task is returned; it rolls back, and this one spawns.

        Raises InvalidParams, InvalidOptions, InvalidKey before anything is sent; IdempotencyConflict and
        DuplicateTask as asked for; RetryTransaction at REPEATABLE READ or SERIALIZABLE, when a concurrent transaction
        has the key.
        """
        return tasks.spawn(self.session, as_call(*what), options)

    def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> list[SpawnResult[R]]:
        """Spawn a batch in a few statements: each call as `spawn` would, results in the order of the calls.

        Options of single calls (their keys, above all) are given by `call.using(idempotency_key=...)`. Equal keys
        within the batch are one task. An error undoes the whole batch, and nothing else of the transaction. Raises as
        `spawn`.
        """
        return batches.spawn_many(self.session, calls, options)

    def find_by_key(self, queue: type[M], key: str) -> M | None:
        """The task that holds `key` in `queue`, as an object of the session; None if the key is free.

        `key` is an idempotency_key, or the derived one that `once_key` computes.
        """
        return keys.find(self.session, queue_of(queue), key)

    def release_key(self, queue: type[DurableTask], key: str) -> bool:
        """Free `key`: the next spawn with it creates a task. Its holder goes on and keeps the key as history.

        False if nobody holds it.
        """
        return keys.release(self.session, queue_of(queue), key)

    @overload
    def result(self, task: SpawnResult[R], /) -> TaskResult[R]: ...
    @overload
    def result(self, task: DurableTask, /) -> TaskResult[Any]: ...
    @overload
    def result(self, queue: type[DurableTask], task_id: UUID, /) -> TaskResult[Any]: ...
    def result(self, *what: Any) -> TaskResult[Any]:
        """How a task stands now: its state, its result once completed, its error once failed. Doesn't wait.

        The result has the handler's return type where the handler is imported here, else JSON's. Raises TaskNotFound.
        """
        return tasks.result(self.session, *task_ref(*what))

    @overload
    def cancel(self, task: SpawnResult[Any] | DurableTask, /) -> bool: ...
    @overload
    def cancel(self, queue: type[DurableTask], task_id: UUID, /) -> bool: ...
    def cancel(self, *what: Any) -> bool:
        """Cancel a task and its descendants. What a worker still writes for them is rejected.

        False if it is terminal already. Raises TaskNotFound.
        """
        return cancellation.cancel(self.session, *task_ref(*what))


def as_call(*what: Any) -> Call[Any, Any]:
    match what:
        case (Call() as call,):
            return call
        case (model, str() as name, params):
            queue = queue_of(model)
            return call_by_name(queue, name, params, queue.__handlers__.get(name))
        case _:
            raise InvalidOptions(
                "spawn takes a call, charge.call(...), or a queue's model, a task's name and its params"
            )


def task_ref(*what: Any) -> tuple[type[DurableTask], UUID]:
    match what:
        case (SpawnResult() as spawned,):
            return queue_of(spawned.model), spawned.task_id
        case (DurableTask() as task,):
            return queue_of(type(task)), task.id
        case (model, UUID() as task_id):
            return queue_of(model), task_id
        case _:
            raise UnknownQueue("give what spawn returned, a task object, or a queue's model and a task's id")
