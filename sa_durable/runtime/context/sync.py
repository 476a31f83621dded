"""The context of sync handlers."""

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
from ...services.references import task_ref
from ...values import SpawnKeywords, SpawnResult
from .base import RANDOM, UUID7, Context
from .moments import check_delay, check_moment
from .prepared import Blocking, InSession, Prepared, Ready, Waiting
from .step import Step
from .transaction_record import StepRecord

P = ParamSpec("P")
R = TypeVar("R")


class TaskContext(Context):
    """The context of a sync (`def`) handler: its first argument.

    ::

        @BillingTask.handler()
        def charge(ctx: TaskContext, order_id: int) -> str:
            payment = ctx.step("pay", pay, order_id)        # never runs again, once it is done
            ctx.sleep_for(timedelta(days=3))                 # holds no thread meanwhile
            return ctx.step("receipt", send_receipt, payment)

    Every method raises Cancelled or LeaseLost once the run must stop, and again if the handler catches that.
    Nothing that the handler does afterwards is stored.
    """

    @overload
    def step(self, name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: type[R], **kwargs: Any) -> R: ...
    def step(self, name: str, fn: Callable[..., Any], *args: Any, returns: Any = None, **kwargs: Any) -> Any:
        """Run `fn(*args, **kwargs)` and save its value: a step that has a saved value never runs again.

        A step that raises saves nothing. A name that is used again is another step.

        Args:
            name: The name of the step: 1 to 255 printable characters, without `#`, not starting with `~` or
                `$`.
            fn: The function to run.
            *args: Its positional arguments.
            returns: The type of the value; by default the return annotation of `fn`. Without either, the
                value is plain JSON, where a tuple becomes a list.
            **kwargs: Its keyword arguments.

        Returns:
            The saved value, decoded; the first time too.

        Raises:
            DeclarationError: The name can't be used, the annotation can't be resolved, or `fn` is async.
            InvalidResult: JSON can't hold the value, or the saved value doesn't match the type.
        """
        step = self._begin_function(name, fn, returns)
        if step.done:
            return step.value
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise DeclarationError(
                f"step {name!r}: an async function needs an async handler (async def). Nothing was saved"
            )
        return self.complete_step(step, value)

    def complete_step(self, step: Step[R], value: R) -> R:
        """Save the value of a step that `begin_step` began, and return it, decoded.

        Args:
            step: The step.
            value: Its value.

        Raises:
            StepMisuse: The step is done already, or another execution of the handler began it.
            InvalidResult: JSON can't hold the value.
        """
        return step.complete(self._operations.steps.save(self._run, step.key, step.encode(self._run, value)))

    def now(self) -> datetime:
        """Return the database's time, in UTC. It is saved, so a replay gets the same time."""
        return self._perform(self._prepare_now())

    def random(self) -> float:
        """Return a random number from 0 to 1, without 1. It is saved, so a replay gets the same number."""
        return self._draw(RANDOM, random.random, float)

    def uuid7(self) -> UUID:
        """Return a new UUIDv7 (RFC 9562), for keys elsewhere. It is saved, so a replay gets the same id."""
        return self._draw(UUID7, uuid7, UUID)

    def heartbeat(self) -> None:
        """Extend the lease now, and stop if the run must stop. Can be called from any thread.

        A worker extends the leases of running handlers anyway. Call this in long loops without steps, so that
        a cancellation ends them: it raises Cancelled or LeaseLost. It executes one short statement.
        """
        self._perform(self._prepare_heartbeat())

    def sleep_for(self, delay: timedelta) -> None:
        """Suspend the task for `delay`, measured by the database's clock. It holds no thread meanwhile.

        Then the handler starts again from the top, in the same run and attempt: its finished steps are
        replayed, and this call returns. Raises InvalidOptions for a negative delay, or one of more than 36500
        days.
        """
        self._sleep(check_delay(delay), None)

    def sleep_until(self, moment: datetime) -> None:
        """Suspend the task, as `sleep_for`, until an aware datetime; not at all if that has passed."""
        self._sleep(None, check_moment(moment))

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
        """Run `fn(session, *args, **kwargs)` as a step that writes its rows **exactly once**.

        ::

            def book(session: Session, order_id: int) -> int:
                session.add(payment := Payment(order_id=order_id))
                session.flush()
                return payment.id

            payment_id = ctx.transaction("book", book, order_id)

        The rows and the step's checkpoint commit in one transaction, or not at all, whenever this process
        dies. `fn` must not commit. It runs again from its start if PostgreSQL refuses the transaction because
        of concurrent ones, so it should have no other side effects.

        Args:
            name: The name of the step, as for `step`.
            fn: The function to run; its first argument is a session of the application's engine.
            *args: Its other positional arguments.
            returns: The type of the value, as for `step`.
            **kwargs: Its keyword arguments.

        Raises:
            DeclarationError: As for `step`; or `fn` committed, or used the context's other operations.
            InvalidResult: As for `step`.
        """
        step = self._begin_function(name, fn, returns)
        if step.done:
            return step.value
        transactions, record = self._operations.transactions, StepRecord(self._run, step)
        recorded = transactions.execute(self._run, lambda session: fn(session, *args, **kwargs), record)
        return step.complete(recorded.value)

    @property
    def session(self) -> Session:
        """The session of a transactional handler.

        It commits when the handler has returned, together with the handler's result. In other handlers, this
        raises DeclarationError.
        """
        session: Session = self._own_session()
        return session

    @overload
    def await_event(self, name: str, *, timeout: timedelta | None = None) -> Any: ...
    @overload
    def await_event(self, name: str, *, returns: type[R], timeout: timedelta | None = None) -> R: ...
    def await_event(self, name: str, *, returns: Any = Any, timeout: timedelta | None = None) -> Any:
        """Wait for an event of this queue and return its payload. Holds no thread meanwhile.

        Returns at once if the event was emitted before.

        Args:
            name: The name of the event.
            returns: The type of its payload. Without it, the payload is plain JSON.
            timeout: Longest time to wait, from the first execution of this call, by the database's clock.

        Raises:
            TimedOut: The timeout has passed. A replay raises it again; a second await of the event is a new
                wait.
            InvalidEvent: An event can't have this name.
            InvalidResult: The payload doesn't match the type.
        """
        return self._perform(self._prepare_await_event(name, returns, timeout))

    def emit_event(self, name: str, payload: Any = None) -> None:
        """Emit an event in this queue, once, whatever happens to this process.

        Args:
            name: The name of the event.
            payload: Its payload: plain JSON, or what pydantic can encode. See `Durable.emit_event`.

        Raises:
            InvalidEvent: An event can't have this name or payload.
        """
        self._perform(self._prepare_emit(name, payload))

    def spawn(self, call: Call[Any, R], **options: Unpack[SpawnKeywords]) -> SpawnResult[R]:
        """Spawn a child of this task, once, however often the handler runs.

        A child is cancelled when this task fails or is cancelled. With a key, an existing task may be
        returned.

        Args:
            call: The call to spawn, of a handler of any queue of the same Base.
            **options: As for `Durable.spawn`, which also raises the same errors.
        """
        return self.spawn_many([call], **options)[0]

    def spawn_many(
        self, calls: Iterable[Call[Any, R]], **options: Unpack[SpawnKeywords]
    ) -> list[SpawnResult[R]]:
        """Spawn children in a few statements, as one step. Returns tasks in the order of the calls.

        Args:
            calls: The calls to spawn.
            **options: As for `Durable.spawn_many`, which also raises the same errors.
        """
        return self._perform(self._prepare_spawn(calls, options))

    @overload
    def join(self, task: SpawnResult[R], /, *, timeout: timedelta | None = None) -> R: ...
    @overload
    def join(
        self, queue: type[DurableTask], task_id: UUID, /, *, timeout: timedelta | None = None
    ) -> Any: ...
    def join(self, *task: Any, timeout: timedelta | None = None) -> Any:
        """Wait until another task has ended and return its result. Holds no thread meanwhile.

        The outcome is saved, so a replay returns or raises the same.

        Args:
            *task: What a spawn returned, or the model of a queue and the id of a task.
            timeout: Longest time to wait, from the first execution of this call. The other task goes on.

        Raises:
            TaskFailed: The task failed.
            TaskCancelled: The task was cancelled.
            TaskNotFound: The task doesn't exist.
            TimedOut: The timeout has passed.
            InvalidResult: The result doesn't match the return type of its handler.
        """
        return self._perform(self._prepare_join([task_ref(*task)], timeout))[0]

    def join_all(self, tasks: Iterable[SpawnResult[R]], *, timeout: timedelta | None = None) -> list[R]:
        """Wait until several tasks have ended and return their results, in the order of the tasks.

        Args:
            tasks: What spawns returned.
            timeout: Longest time to wait for all of them, as for `join`.

        Raises:
            DurableError: The first of the tasks, in their order, that has no result raises as `join` does.
        """
        return self._perform(self._prepare_join(map(task_ref, tasks), timeout))

    def _draw(self, name: str, draw: Callable[[], R], kind: type[R]) -> R:
        if self._session is not None:  # the handler is one transaction: no earlier draw can have been kept
            return draw()
        step = self._begin_draw(name, kind)
        return step.value if step.done else self.complete_step(step, draw())

    def _sleep(self, delay: timedelta | None, until: datetime | None) -> None:
        if self._perform(self._prepare_sleep(delay, until)):
            self._suspend()

    def _perform(self, prepared: Prepared[R]) -> R:
        match prepared:
            case Ready(value):
                return value
            case InSession(call):
                return call(self.session)
            case Blocking(call):
                return call()
            case Waiting(step, awaited, timeout):
                saved = self._operations.waits.wait(self._run, step, awaited, timeout)
                return self._arrived(prepared, saved)
