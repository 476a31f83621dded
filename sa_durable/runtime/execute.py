"""Running handlers: what they are given, and what becomes of how they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from ..codec import NotJson, dumps
from ..errors import InvalidResult, LeaseLost, Signal
from ..handlers import Handler
from ..policy import RetryAfter
from ..services import runs
from ..services.runs import Completed, Failed
from .context import AsyncTaskContext, TaskContext
from .failures import describe, retryable
from .flush import Flusher
from .live import Live, LiveRun
from .pool import DaemonThreads
from .registry import Registry
from .steps import Steps

logger = logging.getLogger("sa_durable.worker")


class Executor:
    """Starts handlers: async ones on the event loop, plain ones in threads. Whatever a handler raises ends its run
    and nothing else; `ended` is called on the loop when its slot is free."""

    def __init__(
        self,
        registry: Registry,
        steps: Steps,
        flusher: Flusher,
        live: Live,
        *,
        concurrency: int,
        ended: Callable[[LiveRun], None],
    ) -> None:
        self._registry, self._steps, self._flusher, self._live = registry, steps, flusher, live
        self._ended = ended
        self._threads = DaemonThreads("sa_durable handler", concurrency)
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, run: LiveRun) -> None:
        """Start a run. On the loop's thread."""
        run.started = monotonic()
        handler = self._registry.handler(run.model, run.claim.name)
        loop = asyncio.get_running_loop()
        if handler.is_async:
            task = loop.create_task(self._run_async(run, handler))
            run.runs_as(task)
            self.tasks.add(task)
            # A callback, since a task that is cancelled before its first step never runs its own code.
            task.add_done_callback(partial(self._async_ended, run))
        else:
            self._threads.submit(self._run_plain, run, handler, loop)

    def close(self) -> None:
        self._threads.stop()

    async def _run_async(self, run: LiveRun, handler: Handler[Any, ..., Any]) -> None:
        outcome: Completed | Failed | None = None
        try:
            run.check()
            arguments = handler.arguments(run.claim.params)
            value = await handler.fn(AsyncTaskContext(run, self._steps), **arguments)
            outcome = self._returned(run, handler, value)
        except BaseException as error:  # noqa: BLE001 - the worker's shell; a sys.exit() ends its run, not the worker
            outcome = self._raised(run, error)
        self._settle(run, outcome)

    def _async_ended(self, run: LiveRun, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not run.settling:
            self._live.remove([run])
        self._ended(run)

    def _run_plain(
        self, run: LiveRun, handler: Handler[Any, ..., Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        outcome: Completed | Failed | None = None
        try:
            run.check()
            arguments = handler.arguments(run.claim.params)
            value = handler.fn(TaskContext(run, self._steps), **arguments)
            outcome = self._returned(run, handler, value)
        except BaseException as error:  # noqa: BLE001 - as above
            outcome = self._raised(run, error)
        self._settle(run, outcome)
        with suppress(RuntimeError):  # the loop is closed: this handler outlived its worker
            loop.call_soon_threadsafe(self._ended, run)

    def _settle(self, run: LiveRun, outcome: Completed | Failed | None) -> None:
        if outcome is not None and run.signal is None:
            self._flusher.put(run, outcome)
        elif not run.settling:  # else the closer gives it back
            self._live.remove([run])

    def _returned(self, run: LiveRun, handler: Handler[Any, ..., Any], value: Any) -> Completed | None:
        claim = run.claim
        if run.signal is not None:
            _log_dropped(run, "returned")
            return None
        what = f"result of {claim.name}"
        try:
            text = dumps(handler.result_coder.encode(value, what), what=what)
        except NotJson as error:
            raise InvalidResult(str(error)) from error
        return Completed(claim.task_id, claim.token, text)

    def _raised(self, run: LiveRun, error: BaseException) -> Failed | None:
        if run.signal is not None:
            if not isinstance(error, Signal | asyncio.CancelledError):
                _log_dropped(run, f"raised {type(error).__qualname__}")
            return None
        claim = run.claim
        failed = runs.failed(claim, describe(error), retryable=retryable(error))
        match failed.verdict:
            case RetryAfter(delay):
                then = f"attempt {claim.attempt + 1} in {delay.total_seconds():.3g} s"
            case _:
                then = "the task has failed"
        # Only the type: messages quote values.
        logger.warning(
            "task %s (%s): attempt %d raised %s: %s",
            claim.task_id,
            claim.name,
            claim.attempt,
            failed.error.type,
            then,
        )
        return failed


def _log_dropped(run: LiveRun, what: str) -> None:
    level = logging.WARNING if isinstance(run.signal, LeaseLost) else logging.INFO
    logger.log(
        level,
        "task %s (%s): attempt %d %s after %s; nothing of it is stored",
        run.claim.task_id,
        run.claim.name,
        run.claim.attempt,
        what,
        type(run.signal).__name__,
    )
