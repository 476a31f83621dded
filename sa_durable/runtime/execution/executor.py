"""Run handlers, and turn how they end into an outcome to store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import Context
from functools import partial
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from sqlalchemy.orm import Session

from ...codec import NotJson, dumps
from ...errors import InvalidResult, LeaseLost, Signal
from ...handlers import Handler
from ...policy import RetryAfter
from ...services import runs
from ...services.runs import Completed, Failed
from ..context.aio import AsyncTaskContext
from ..context.current import make_current
from ..context.operations import ContextOperations
from ..context.sync import TaskContext
from ..context.transaction_record import TaskRecord
from ..runs.active import ActiveRun, ActiveRuns
from ..runs.completer import Completer
from ..runs.errors import retryable, to_task_error
from ..runs.registry import Registry
from ..threads.pool import DaemonThreadPool
from .run_hooks import run_hooks
from .timeouts import Timeouts

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

logger = logging.getLogger("sa_durable.worker")
ContextT = TypeVar("ContextT", AsyncTaskContext, TaskContext)
Outcome: TypeAlias = Completed | Failed | None
"""What the completer stores after a run. None: nothing, or it is stored already."""


class RunSource(Protocol):
    """The part that gives runs to the executor: the dispatcher."""

    def ended(self, run: ActiveRun) -> None:
        """Free the slot of an async run. On the loop."""

    def next_sync(self, ended: ActiveRun) -> ActiveRun | None:
        """Free the slot of a sync run. Return the sync run that its thread takes next. In that thread."""


class Executor:
    """Run handlers: async ones on the event loop, sync ones in threads.

    An error in a handler ends its run only.

    Args:
        registry: The handlers.
        operations: The operations of the contexts.
        completer: Stores outcomes.
        timeouts: Ends runs that take longer than their handler's timeout.
        active: The worker's runs.
        concurrency: Number of threads for sync handlers.
        on_task_stored: Called when a transactional handler has completed its task itself. In any thread.
        on_error: Called with the error that a handler raised, before it is stored. In any thread.
    """

    def __init__(
        self,
        registry: Registry,
        operations: ContextOperations,
        completer: Completer,
        timeouts: Timeouts,
        active: ActiveRuns,
        *,
        concurrency: int,
        on_task_stored: Callable[[], None],
        on_error: Callable[[ActiveRun, BaseException], None] | None = None,
    ) -> None:
        self._registry, self._operations, self._active = registry, operations, active
        self._completer, self._timeouts = completer, timeouts
        self._on_task_stored, self._on_error = on_task_stored, on_error
        self._threads = DaemonThreadPool("sa_durable handler", concurrency)
        self.tasks: set[asyncio.Task[None]] = set()
        """The asyncio tasks of async handlers that have not ended."""

    def is_sync(self, run: ActiveRun) -> bool:
        """Return whether the handler of a run is sync, and needs a thread."""
        return not self._registry.handler(run.model, run.claim.name).is_async

    def start(self, run: ActiveRun, source: RunSource) -> None:
        """Start a run of `source` on the loop's thread.

        The run has an empty context: it doesn't see the context variables of the code that claimed it.
        """
        handler = self._registry.handler(run.model, run.claim.name)
        if handler.is_async:
            self._begin(run, handler)
            loop = asyncio.get_running_loop()
            ended = partial(self._async_ended, source, run)
            task = loop.create_task(self._run_async(run, handler, ended), context=Context())
            run.task = task
            self.tasks.add(task)
            # For a task that is cancelled before it starts, which never runs its own code.
            task.add_done_callback(ended)
        else:
            self._threads.submit(self._run_sync_in_turn, run, source)

    def close(self) -> None:
        """End the threads, each after the handler that it runs."""
        self._threads.stop()

    def _begin(self, run: ActiveRun, handler: Handler[Any, ..., Any]) -> None:
        run.started = monotonic()
        if (timeout := handler.run_options.timeout) is not None:
            self._timeouts.watch(run, timeout)

    def _enter(self, run: ActiveRun, context_class: type[ContextT]) -> ContextT:
        """Return the run's context, which is now the current one of this thread and task."""
        run.thread = get_ident()
        make_current(context := context_class(run, self._operations))
        return context

    async def _run_async(
        self,
        run: ActiveRun,
        handler: Handler[Any, ..., Any],
        ended: Callable[[asyncio.Task[None]], None],
    ) -> None:
        task = run.task
        assert task is not None  # noqa: S101 - `start` has set it
        task.remove_done_callback(ended)  # a callback takes as long as the rest of a short run
        context = self._enter(run, AsyncTaskContext)
        try:
            with run_hooks(context):
                arguments = _arguments(run, handler)
                if handler.transactional:
                    await self._in_transaction_async(run, handler, arguments)
                    outcome = None
                else:
                    outcome = self._returned(run, handler, await handler.fn(context, **arguments))
        except BaseException as error:  # noqa: BLE001 - a sys.exit() in a handler ends its run, not the worker
            outcome = self._raised(run, handler, error)
        try:
            self._submit_outcome(run, outcome)
        finally:
            ended(task)

    def _async_ended(self, source: RunSource, run: ActiveRun, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        # Task, context and run refer to each other: otherwise only the garbage collector would free them.
        run.task = None
        if not run.finishing:
            self._active.remove([run])
        source.ended(run)

    def _run_sync_in_turn(self, first: ActiveRun, source: RunSource) -> None:
        """Run `first`, and the sync runs that follow it. In a thread."""
        run: ActiveRun | None = first
        while run is not None:
            handler = self._registry.handler(run.model, run.claim.name)
            self._begin(run, handler)
            try:
                Context().run(self._run_sync, run, handler)
            finally:
                run = source.next_sync(run)

    def _run_sync(self, run: ActiveRun, handler: Handler[Any, ..., Any]) -> None:
        context = self._enter(run, TaskContext)
        try:
            with run_hooks(context):
                arguments = _arguments(run, handler)
                if handler.transactional:
                    self._in_transaction(run, handler, arguments)
                    outcome = None
                else:
                    outcome = self._returned(run, handler, handler.fn(context, **arguments))
        except BaseException as error:  # noqa: BLE001 - as in _run_async
            outcome = self._raised(run, handler, error)
        self._submit_outcome(run, outcome)

    def _in_transaction(
        self, run: ActiveRun, handler: Handler[Any, ..., Any], arguments: Mapping[str, Any]
    ) -> None:
        """Run a transactional handler, and complete its task in the same transaction."""

        def work(session: Session) -> Any:
            make_current(context := TaskContext(run, self._operations, session))
            return handler.fn(context, **arguments)

        self._operations.transactions.execute(run, work, TaskRecord(run, partial(_result_text, run, handler)))
        self._stored(run)

    async def _in_transaction_async(
        self, run: ActiveRun, handler: Handler[Any, ..., Any], arguments: Mapping[str, Any]
    ) -> None:
        """Do the same as `_in_transaction`, on the event loop."""

        def work(session: AsyncSession) -> Any:
            make_current(context := AsyncTaskContext(run, self._operations, session))
            return handler.fn(context, **arguments)

        await self._operations.transactions.execute_async(
            run, work, TaskRecord(run, partial(_result_text, run, handler))
        )
        self._stored(run)

    def _stored(self, run: ActiveRun) -> None:
        self._active.remove([run])
        self._on_task_stored()

    def _submit_outcome(self, run: ActiveRun, outcome: Outcome) -> None:
        if outcome is not None and run.signal is None:
            self._completer.submit(run, outcome)
        elif not run.finishing:  # otherwise another thread stores its outcome, and removes the run
            self._active.remove([run])

    def _returned(self, run: ActiveRun, handler: Handler[Any, ..., Any], value: Any) -> Outcome:
        claim = run.claim
        if run.signal is not None:
            _log_discarded(run, "returned")
            return None
        return Completed(claim.task_id, claim.token, _result_text(run, handler, value))

    def _raised(self, run: ActiveRun, handler: Handler[Any, ..., Any], error: BaseException) -> Outcome:
        if run.signal is not None:
            if not isinstance(error, Signal | asyncio.CancelledError):
                _log_discarded(run, f"raised {type(error).__qualname__}")
            return None
        try:
            return self._failed(run, handler, error)
        except Exception as unexpected:  # noqa: BLE001 - raised here, it would end the thread and lose its slot
            claim = run.claim
            logger.error(  # noqa: TRY400 - a traceback would quote the handler's error
                "failure not stored: task %s (%s), attempt %d (%s); its lease will expire",
                claim.task_id,
                claim.name,
                claim.attempt,
                type(unexpected).__qualname__,
            )
            return None

    def _failed(self, run: ActiveRun, handler: Handler[Any, ..., Any], error: BaseException) -> Failed:
        if self._on_error is not None:
            self._on_error(run, error)
        claim = run.claim
        failed = runs.failed(
            claim, to_task_error(error), retryable=retryable(error, handler.run_options.non_retryable)
        )
        match failed.verdict:
            case RetryAfter(delay):
                then = f"next attempt in {delay.total_seconds():.3g} s"
            case _:
                then = "the task has failed"
        # The error's type only: its message may quote values.
        logger.warning(
            "attempt failed: task %s (%s), attempt %d (%s); %s",
            claim.task_id,
            claim.name,
            claim.attempt,
            failed.error.type,
            then,
        )
        return failed


def _arguments(run: ActiveRun, handler: Handler[Any, ..., Any]) -> dict[str, Any]:
    """Return the arguments of a run, unless it was stopped before its handler started."""
    run.check()
    return handler.arguments(run.claim.params, task_id=run.claim.task_id)


def _result_text(run: ActiveRun, handler: Handler[Any, ..., Any], value: Any) -> str:
    what = f"result of {run.claim.name}"
    try:
        return dumps(handler.result_coder.encode(value, what), place=what)
    except NotJson as error:
        raise InvalidResult(str(error)) from error


def _log_discarded(run: ActiveRun, ending: str) -> None:
    level = logging.WARNING if isinstance(run.signal, LeaseLost) else logging.INFO
    logger.log(
        level,
        "outcome discarded: task %s (%s), attempt %d (the handler %s after %s); nothing is stored",
        run.claim.task_id,
        run.claim.name,
        run.claim.attempt,
        ending,
        type(run.signal).__name__,
    )
