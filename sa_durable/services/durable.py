"""Durable: the spawn service of a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session, scoped_session
from typing_extensions import Unpack

from ..errors import InvalidOptions, UnknownQueue
from ..handlers import Call, call_by_name
from ..models import DurableTask, queue_of
from ..values import CleanedUp, SpawnKeywords, SpawnResult, TaskResult, TaskRun
from . import cancellation, claims, cleanup, events, history, keys, queues, retries, spawn, spawn_many

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
        return spawn.spawn(self.session, as_call(*what), options)

    def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> Sequence[SpawnResult[R]]:
        """Spawn a batch in a few statements: each call as `spawn` would, results in the order of the calls.

        Options of single calls (their keys, above all) are given by `call.using(idempotency_key=...)`. Equal keys
        within the batch are one task. An error undoes the whole batch, and nothing else of the transaction. Raises as
        `spawn`.

        `calls` may be a generator, of millions: those without a key are sent by the thousands as they come and aren't
        kept. The results take 32 bytes a task, and are made when they are looked at.
        """
        return spawn_many.spawn_many(self.session, calls, options)

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

    def emit_event(self, queue: type[DurableTask], name: str, payload: Any = None) -> None:
        """Emit event `name` in `queue`: tasks that await it, now or later, get `payload` once the caller commits.

        The first of a name that workers see is the event, for good: later ones of that name change nothing, so put
        what makes it unique into the name ("paid:order-7"). `payload` is JSON, or what pydantic makes JSON of. Takes no
        lock: a transaction that stays open holds up nobody. Raises InvalidEvent.
        """
        events.emit(self.session, queue_of(queue), name, payload)

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
        return spawn.result(self.session, *task_ref(*what))

    @overload
    def cancel(self, task: SpawnResult[Any] | DurableTask, /) -> bool: ...
    @overload
    def cancel(self, queue: type[DurableTask], task_id: UUID, /) -> bool: ...
    def cancel(self, *what: Any) -> bool:
        """Cancel a task and its descendants. What a worker still writes for them is rejected.

        False if it is terminal already. Raises TaskNotFound.
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
        """Give a task that has failed, or was cancelled, another attempt.

        It goes on where it was, with its checkpoints; `max_attempts` is raised if need be, and a `max_duration` starts
        anew. Tasks that were cancelled along with it stay so: retry those that it joins, too. With `as_new`, a new task
        instead, without checkpoints, that does the same: of the same name, params, headers, priority, limits
        and columns of your own; nobody's child, and without a time to start.

        It takes its key back, with its `hold` and `key_ttl` as before; a new task is handed it. Raises KeyTaken where
        another task has it by now, or, with `detach`, goes on without. Raises InvalidState for a task that has
        completed or goes on anyway, TaskNotFound, and RetryTransaction as spawn.
        """
        return retries.retry(self.session, *task_ref(*what), as_new=as_new, detach=detach)

    @overload
    def runs(self, task: SpawnResult[Any] | DurableTask, /) -> list[TaskRun]: ...
    @overload
    def runs(self, queue: type[DurableTask], task_id: UUID, /) -> list[TaskRun]: ...
    def runs(self, *what: Any) -> list[TaskRun]:
        """Every attempt at a task, in order; the last one is the current one, or how it ended. Raises TaskNotFound."""
        return history.runs(self.session, *task_ref(*what))

    def count_ready(
        self, queue: type[DurableTask], names: Sequence[str] | None = None, *, limit: int = 10_000
    ) -> int:
        """How many tasks of `queue` (called one of `names`) workers could claim now: ready ones, and sleepers that are
        due. None while the queue is paused.

        For autoscalers: one statement, which stops counting at `limit`. Raises InvalidOptions.
        """
        return claims.count_ready(self.session, queue_of(queue), names=names, limit=limit)

    def clean_up(self, queue: type[DurableTask], *, older_than: timedelta, limit: int = 1000) -> CleanedUp:
        """Delete up to `limit` tasks of `queue` that ended more than `older_than` ago, the longest ago first, with their
        history; and as many events that were decided that long ago. Returns how many: call it, in transactions of
        their own, until both are fewer than `limit`.

        Keys of what is deleted are free. It leaves what somebody still waits for; children until their parent has
        ended that long ago, too; tasks that rows of yours refer to by a foreign key, unless that says ON DELETE CASCADE or
        SET NULL; and what somebody has locked. A task that awaits a deleted event waits for the next one, and one that
        joins a deleted task gets TaskNotFound: keep both for longer than your workflows take.

        Workers do this for queues that have a retention (`set_retention`). Raises InvalidOptions.
        """
        return cleanup.clean_up(self.session, queue_of(queue), older_than=older_than, limit=limit)

    def pause(self, queue: type[DurableTask]) -> bool:
        """Pause a queue: once the caller commits, workers claim nothing from it. Runs that have started go on.

        Tasks can still be spawned. The queue stays paused until `resume`. A queue that is paused already keeps the
        time at which it was paused (`durable_queues.paused_at`).

        Commit soon: until then, other operators wait, and idle workers poll instead of being notified.

        Returns:
            Whether this call paused the queue; False if it was paused already.

        Raises:
            UnknownQueue: `queue` is no queue's model.
            SchemaOutdated: The database is behind this version.
            RetryTransaction: At REPEATABLE READ or SERIALIZABLE, a concurrent transaction changed the queue's row.
        """
        return queues.pause(self.session, queue_of(queue))

    def resume(self, queue: type[DurableTask]) -> bool:
        """Resume a paused queue: once the caller commits, workers claim its tasks again.

        Returns:
            Whether this call resumed the queue; False if it wasn't paused.

        Raises:
            UnknownQueue, SchemaOutdated, RetryTransaction: As `pause`.
        """
        return queues.resume(self.session, queue_of(queue))

    def set_retention(self, queue: type[DurableTask], retention: timedelta | None) -> bool:
        """Set how long a queue's finished tasks and decided events are kept. Workers delete older ones (`clean_up`).

        Args:
            queue: The queue's model.
            retention: A positive duration. None keeps everything, which is the default.

        Returns:
            Whether this call changed the retention.

        Raises:
            InvalidOptions: `retention` is no positive timedelta. Nothing was sent.
            UnknownQueue, SchemaOutdated, RetryTransaction: As `pause`.
        """
        return queues.set_retention(self.session, queue_of(queue), retention)


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
