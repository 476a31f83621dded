"""The context of plain handlers."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar, overload
from uuid import UUID

from sqlalchemy.orm import Session
from typing_extensions import Unpack

from ...errors import DeclarationError
from ...handlers import Call
from ...ids import uuid7
from ...models import DurableTask
from ...services import child_tasks, clock, events
from ...services.durable import task_ref
from ...services.waits import Awaited, AwaitedEvent
from ...values import Json, SpawnKeywords, SpawnResult
from . import waits
from .base import (
    AWAIT,
    EMIT,
    JOIN,
    NOW,
    RANDOM,
    SLEEP,
    SPAWN,
    UUID7,
    Context,
    check_delay,
    check_moment,
    check_timeout,
    read_moment,
)
from .manual_step import Step
from .replay import NotYetRun, Replayed, check_step_name, library_step_name
from .steps import coder_for_function, coder_for_type, decode, encode
from .transaction_record import StepRecord

P = ParamSpec("P")
R = TypeVar("R")


class TaskContext(Context):
    """The context of a plain `def` handler.

    ::

        @BillingTask.handler()
        def charge(ctx: TaskContext, order_id: int) -> str:
            payment = ctx.step("pay", pay, order_id)        # runs once, whatever happens to this process
            ctx.sleep_for(timedelta(days=3))                 # holds no thread meanwhile
            return ctx.step("receipt", send_receipt, payment)

    Every method raises Cancelled or LeaseLost once the run must stop, and goes on doing so: what a handler does
    after that is not stored.
    """

    @overload
    def step(self, name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any) -> R: ...
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any) -> Any:
        """The value of `fn(*args, **kwargs)`, saved under `name`: a finished step never runs again.

        What comes back is the saved value decoded, the first time too: by `returns` or the return annotation of
        `fn`, else as plain JSON (a tuple is a list then). The same name again is another step. A step that raises
        saves nothing. Raises InvalidResult for a value that JSON can't hold, DeclarationError for a name or
        annotation that can't work.
        """
        coder = coder_for_function(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise DeclarationError(f"step {name!r} is async: its handler must be an async def")
        stored = self._operations.steps.save(self._run, slot.key, encode(coder, value, slot.key))
        return decode(coder, stored, slot.key)

    def complete_step(self, step: Step[R], value: R) -> R:
        """Save the value of a step that `begin_step` began; returns it as `step` does. Raises StepMisuse for a step that
        is done, or was begun by another run."""
        return step.complete(self._operations.steps.save(self._run, step.key, step.encode(self._run, value)))

    def now(self) -> datetime:
        """The database's time, in UTC: remembered, so a replay sees the same."""
        if self._session is not None:
            return clock.now(self._session)
        slot = self._next(NOW)
        if isinstance(slot, Replayed):
            return read_moment(slot.value)
        return read_moment(self._operations.steps.now(self._run, slot.key))

    def random(self) -> float:
        """A random number from 0 up to 1, which it never is: remembered, so a replay sees the same."""
        return self._draw(RANDOM, random.random, float)

    def uuid7(self) -> UUID:
        """A new UUIDv7 (RFC 9562), for keys and names elsewhere: remembered, so a replay sees the same."""
        return self._draw(UUID7, uuid7, UUID)

    def _draw(self, name: str, draw: Callable[[], R], kind: type[R]) -> R:
        if self._session is not None:  # one transaction: nothing of an earlier draw is left
            return draw()
        slot, coder = self._next(name), coder_for_type(kind)
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)  # type: ignore[no-any-return]  # of this kind
        stored = self._operations.steps.save(self._run, slot.key, encode(coder, draw(), slot.key))
        return decode(coder, stored, slot.key)  # type: ignore[no-any-return]  # as above

    def heartbeat(self) -> None:
        """Extend the lease now, and learn whether the run may go on: raises Cancelled or LeaseLost if not.

        One short statement, from any thread. Leases are extended anyway while a handler runs; call this in long loops
        that have no steps, so that a cancellation ends them.
        """
        self._operations.steps.extend(self._run)

    def sleep_for(self, delay: timedelta) -> None:
        """Suspend the task; it goes on after `delay`, by the database's clock, in the same run and attempt.

        The handler starts again from the top then, its finished steps are replayed and this returns.
        """
        self._sleep(check_delay(delay), None)

    def sleep_until(self, moment: datetime) -> None:
        """As `sleep_for`, until an aware datetime; a past one doesn't suspend."""
        self._sleep(None, check_moment(moment))

    def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        if self._operations.steps.sleep(self._run, self._next(SLEEP).key, delay, until):
            self._suspend()

    @overload
    def transaction(
        self, name: str, fn: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    def transaction(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any
    ) -> R: ...
    def transaction(
        self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any
    ) -> Any:
        """The value of `fn(session, *args, **kwargs)`, a step whose rows are written **exactly once**.

        What `fn` does with the session and the record that it happened commit in one transaction, or not at all,
        whenever this process dies. `fn` doesn't commit; it may run again from its start if PostgreSQL refused the
        transaction for what others did at the same time, so it should do nothing beside. Everything else is as `step`
        has it.

        ::

            def book(session: Session, order_id: int) -> int:
                session.add(payment := Payment(order_id=order_id))
                session.flush()
                return payment.id

            payment_id = ctx.transaction("book", book, order_id)
        """
        coder = coder_for_function(fn, returns)
        slot = self._next(check_step_name(name))
        if isinstance(slot, Replayed):
            return decode(coder, slot.value, slot.key)

        def work(session: Session) -> Any:
            return fn(session, *args, **kwargs)

        found = self._operations.transactions.execute(self._run, work, StepRecord(self._run, slot.key, coder))
        return decode(coder, found.value, slot.key)

    @property
    def session(self) -> Session:
        """The session of a transactional handler. It commits when the handler has returned, together with its result."""
        session: Session = self._own_session()
        return session

    @overload
    def await_event(self, name: str, *, timeout: timedelta | None = None) -> Any: ...
    @overload
    def await_event(self, name: str, *, returns: type[R], timeout: timedelta | None = None) -> R: ...
    def await_event(self, name: str, *, returns: Any = Any, timeout: timedelta | None = None) -> Any:
        """The payload of event `name` of this queue, as soon as it is emitted, at once if it was; of type `returns`.

        The task sleeps meanwhile and holds no thread. Raises TimedOut when `timeout` has passed since the first time,
        by the database's clock; a replay sees that again at once, another await of the name waits anew.
        """
        coder = coder_for_type(returns)
        slot, timeout = self._next(library_step_name(AWAIT, events.check_name(name))), check_timeout(timeout)
        value = self._wait(slot, AwaitedEvent(self._run.model, name), timeout)
        return waits.payload(coder, value, slot.key)

    def emit_event(self, name: str, payload: Any = None) -> None:
        """Emit an event in this queue, once, whatever happens to this process. As Durable.emit."""
        text = events.encode(events.check_name(name), payload)
        if self._session is not None:
            events.emit_encoded(self._session, self._run.model, name, text)
        elif isinstance(slot := self._next(library_step_name(EMIT, name)), NotYetRun):
            self._operations.waits.emit(self._run, slot.key, name, text)

    def spawn(self, call: Call[Any, R], **options: Unpack[SpawnKeywords]) -> SpawnResult[R]:
        """Spawn a child of this task, in any queue of its Base: one, however often the handler runs.

        It is cancelled with this task when that fails or is cancelled. With a key, an existing task may be what
        it returns. Options as Durable.spawn has them.
        """
        return self.spawn_many([call], **options)[0]

    def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> list[SpawnResult[R]]:
        """Spawn children in a few statements, in the order of the calls; one step. As Durable.spawn_many."""
        batch = list(calls)
        if self._session is not None:
            return child_tasks.spawn_in(self._session, self._run.model, self._run.claim, batch, options)
        if not batch:
            return []
        slot = self._next(library_step_name(SPAWN, batch[0].name))
        if isinstance(slot, Replayed):
            return child_tasks.from_checkpoint(batch, slot.value)
        return child_tasks.from_checkpoint(
            batch, self._operations.waits.spawn(self._run, slot.key, batch, options)
        )

    @overload
    def join(self, task: SpawnResult[R], /, *, timeout: timedelta | None = None) -> R: ...
    @overload
    def join(
        self, queue: type[DurableTask], task_id: UUID, /, *, timeout: timedelta | None = None
    ) -> Any: ...
    def join(self, *what: Any, timeout: timedelta | None = None) -> Any:
        """The result of another task, once it has ended: what a spawn returned, or a queue's model and a task's id. The
        task sleeps meanwhile.

        Raises ChildFailed, ChildCancelled, TaskNotFound, and TimedOut when `timeout` has passed since the first time; the
        other task goes on then. What it raised or returned is remembered.
        """
        return self._join([task_ref(*what)], timeout)[0]

    def join_all(self, tasks: Iterable[SpawnResult[R]], *, timeout: timedelta | None = None) -> list[R]:
        """The results of several tasks, in their order, once all have ended. Raises for the first, in that order, that
        failed or was cancelled; else as `join`."""
        return self._join([task_ref(task) for task in tasks], timeout)

    def _join(self, tasks: list[waits.Ref], timeout: timedelta | None) -> list[Any]:
        ends = self._ends(tasks)
        slot, timeout = self._next(JOIN), check_timeout(timeout)
        return waits.results(ends.tasks, self._wait(slot, ends, timeout), slot.key)

    def _wait(self, slot: Replayed | NotYetRun, what: Awaited, timeout: timedelta | None) -> Json:
        if isinstance(slot, Replayed):
            return slot.value
        value = self._operations.waits.wait(self._run, slot.key, what, timeout)
        return value if value is not None else self._suspend()
