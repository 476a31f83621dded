"""Base class of the contexts of handlers: the task's identity, and all decisions of the operations.

Nothing here does I/O. Each `_prepare_...` method decides what an operation has to do, and returns that as a
value of `prepared`. The contexts of sync and async handlers perform it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, overload
from uuid import UUID

from ...errors import DeclarationError
from ...handlers import Call
from ...services import child_tasks, clock, events
from ...services.waits import Awaited, AwaitedEvent, AwaitedTasks
from ...values import Json, SpawnKeywords, SpawnResult
from ..runs.active import ActiveRun
from .moments import check_timeout, read_moment
from .operations import ContextOperations
from .prepared import Blocking, InSession, Prepared, Ready, Waiting
from .replay import Replay, Replayed, StepState, check_step_name, library_step_name
from .step import Step
from .step_values import coder_for_function, coder_for_type
from .transaction_scope import require_no_transaction
from .waits import TaskRef, read_payload, read_results

R = TypeVar("R")

# Names of the library's own steps. With a colon: a prefix, before the name of an event or a task.
SLEEP, AWAIT, EMIT, SPAWN, JOIN = "$sleep", "$await:", "$emit:", "$spawn:", "$join"
NOW, RANDOM, UUID7 = "$now", "$random", "$uuid7"


class Context:
    """The task that a handler runs for, and the parts of its durable operations that need no I/O.

    Args:
        run: The run that executes the handler.
        operations: The worker's operations.
        session: The session of a transactional handler; None for the others.
    """

    def __init__(self, run: ActiveRun, operations: ContextOperations, session: Any = None) -> None:
        self._run, self._operations, self._session = run, operations, session

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of task {self.task_id}, attempt {self.attempt}>"

    @property
    def task_id(self) -> UUID:
        """The id of the task."""
        return self._run.claim.task_id

    @property
    def run_id(self) -> UUID:
        """The id of the current attempt: the same after a sleep, another one after a failure."""
        return self._run.claim.run_id

    @property
    def attempt(self) -> int:
        """The number of the current attempt, from 1."""
        return self._run.claim.attempt

    @property
    def name(self) -> str:
        """The name of the task, by which its handler was found."""
        return self._run.claim.name

    @property
    def queue(self) -> str:
        """The name of the queue that the task is in."""
        return self._run.claim.queue

    @property
    def headers(self) -> Mapping[str, Json]:
        """The headers that the task was spawned with; read-only."""
        return MappingProxyType(dict(self._run.claim.headers or {}))

    @overload
    def begin_step(self, name: str) -> Step[Any]: ...
    @overload
    def begin_step(self, name: str, *, returns: type[R]) -> Step[R]: ...
    def begin_step(self, name: str, *, returns: Any = Any) -> Step[Any]:
        """Begin a step that doesn't fit a callable; `complete_step` saves its value.

        ::

            step = ctx.begin_step("pay", returns=Receipt)
            if not step.done:
                with provider.session() as session:
                    ctx.complete_step(step, session.pay(order_id))
            receipt = step.value

        Writes nothing, and is not awaited in async handlers either. The next attempt begins a step again that
        wasn't completed. Repeated names are numbered in order, as `step` numbers them.

        Args:
            name: The name of the step, as for `step`.
            returns: The type of the step's value. Without it, the value is plain JSON.

        Returns:
            The step. It is done if it was completed in an earlier execution of the handler.

        Raises:
            DeclarationError: A step can't have this name.
        """
        return Step(self._run, self._next(check_step_name(name)), coder_for_type(returns))

    def _begin_function(self, name: str, fn: Callable[..., Any], returns: Any) -> Step[Any]:
        coder = coder_for_function(fn, returns)
        return Step(self._run, self._next(check_step_name(name)), coder)

    def _begin_draw(self, name: str, kind: type[R]) -> Step[R]:
        return Step(self._run, self._next(name), coder_for_type(kind))

    def _prepare_now(self) -> Prepared[datetime]:
        if self._session is not None:
            return InSession(clock.now)
        step = self._next(NOW)
        if isinstance(step, Replayed):
            return Ready(read_moment(step.value))
        return Blocking(lambda: read_moment(self._operations.steps.now(self._run, step.key)))

    def _prepare_heartbeat(self) -> Prepared[None]:
        return Blocking(lambda: self._operations.steps.extend(self._run))

    def _prepare_sleep(self, delay: timedelta | None, until: datetime | None) -> Prepared[bool]:
        """Prepare a sleep; it returns whether the run sleeps now."""
        step = self._next(SLEEP)
        return Blocking(lambda: self._operations.steps.sleep(self._run, step.key, delay, until))

    def _prepare_await_event(self, name: str, returns: Any, timeout: timedelta | None) -> Prepared[Any]:
        coder = coder_for_type(returns)
        step = self._next(library_step_name(AWAIT, events.check_name(name)))
        return self._prepare_wait(
            step,
            AwaitedEvent(self._run.model, name),
            timeout,
            lambda saved: read_payload(coder, saved, step.key),
        )

    def _prepare_join(self, refs: Iterable[TaskRef], timeout: timedelta | None) -> Prepared[list[Any]]:
        tasks = list(refs)
        if (self._run.model, self.task_id) in tasks:
            raise DeclarationError(
                f"{self.name}: task {self.task_id} can't join itself, because it would wait forever"
            )
        step = self._next(JOIN)
        return self._prepare_wait(
            step, AwaitedTasks(tasks), timeout, lambda saved: read_results(tasks, saved, step.key)
        )

    def _prepare_wait(
        self, step: StepState, awaited: Awaited, timeout: timedelta | None, read: Callable[[Json], R]
    ) -> Prepared[R]:
        timeout = check_timeout(timeout)
        return (
            Ready(read(step.value))
            if isinstance(step, Replayed)
            else Waiting(step.key, awaited, timeout, read)
        )

    def _prepare_emit(self, name: str, payload: Any) -> Prepared[None]:
        text = events.encode(events.check_name(name), payload)
        if self._session is not None:
            return InSession(lambda session: events.emit_encoded(session, self._run.model, name, text))
        step = self._next(library_step_name(EMIT, name))
        if isinstance(step, Replayed):
            return Ready(None)
        return Blocking(lambda: self._operations.waits.emit(self._run, step.key, name, text))

    def _prepare_spawn(
        self, calls: Iterable[Call[Any, R]], options: SpawnKeywords
    ) -> Prepared[list[SpawnResult[R]]]:
        batch, model, claim = list(calls), self._run.model, self._run.claim
        if self._session is not None:
            return InSession(lambda session: child_tasks.spawn_in(session, model, claim, batch, options))
        if not batch:
            return Ready([])
        step = self._next(library_step_name(SPAWN, batch[0].name))
        if isinstance(step, Replayed):
            return Ready(child_tasks.from_checkpoint(batch, step.value))

        def spawn() -> list[SpawnResult[R]]:
            saved = self._operations.waits.spawn(self._run, step.key, batch, options)
            return child_tasks.from_checkpoint(batch, saved)

        return Blocking(spawn)

    def _arrived(self, waiting: Waiting[R], saved: Json) -> R:
        """Return what a wait returns, or suspend the run if it sleeps."""
        return waiting.read(saved) if saved is not None else self._suspend()

    @cached_property
    def _replay(self) -> Replay:
        return Replay(self._run.checkpoints)

    def _next(self, name: str) -> StepState:
        """Return the next step of this name. Raises the signal that ended the run, if one has."""
        if self._session is not None:
            raise DeclarationError(
                f"{self.name}: a transactional handler can only use ctx.session, ctx.spawn and "
                "ctx.emit_event, because nothing else can be saved before the handler ends"
            )
        require_no_transaction(self._run)
        self._run.check()
        return self._replay.next(name)

    def _own_session(self) -> Any:
        if self._session is None:
            raise DeclarationError(
                f"{self.name}: the handler has no ctx.session. Use ctx.transaction(name, fn), or make "
                "the whole handler one transaction with @handler(transactional=True)"
            )
        return self._session

    def _suspend(self) -> NoReturn:
        self._run.suspend()
