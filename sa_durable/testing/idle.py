"""Run due tasks in this process until none is left."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ..errors import InvalidOptions
from ..runtime.connections.engines import EngineOrUrl
from ..runtime.context.transactions import AsyncSessionFactory, SessionFactory
from ..runtime.runs.active import ActiveRun
from ..runtime.signals import close_loop
from .driven import DrivenWorker, FinishedRun, RemainingTask

if TYPE_CHECKING:
    from ..models import DurableTask

MAX_RUNS = 1000
TIMEOUT_S = 30.0
MAX_LISTED = 5


class NotIdle(AssertionError):
    """There was still work after the given number of runs or seconds.

    The unfinished run is released. The results of the earlier runs are stored.
    """


@dataclass(frozen=True, slots=True)
class Idle:
    """The runs until no task was due, and the tasks that are left."""

    runs: tuple[FinishedRun, ...]
    """The runs, in order."""
    remaining: tuple[RemainingTask, ...]
    """At most 1000 tasks that have not ended. The one that is due next comes first."""

    @property
    def errors(self) -> list[BaseException]:
        """The exceptions that handlers raised, including those of runs that were retried."""
        return [run.error for run in self.runs if run.error is not None]

    @property
    def next_due(self) -> datetime | None:
        """When the next sleeping task wakes by itself. None if no task does."""
        return min((task.due for task in self.remaining if task.due is not None), default=None)


def run_until_idle(
    engine: EngineOrUrl,
    *queues: type[DurableTask],
    limit: int = MAX_RUNS,
    timeout: float = TIMEOUT_S,
    raise_errors: bool = False,
    session_factory: SessionFactory | None = None,
    async_session_factory: AsyncSessionFactory | None = None,
) -> Idle:
    """Run the due tasks of queues, one after the other, until no task is due by the database's clock.

    The worker's own code runs them, so it does all that a worker does: sync and async handlers, steps,
    retries, sleeps, events, children in any of these queues, expired leases, deadlines. Sleeping tasks are
    not woken early: move the time by `clock`. Uncommitted tasks are not found. Nothing is deleted, even if a
    queue has a retention.

    In a running event loop, or with an AsyncEngine, use `await run_until_idle_async(...)`.

    Args:
        engine: The engine or URL of the database.
        queues: The task classes of the queues.
        limit: Most runs before NotIdle is raised.
        timeout: Most seconds before NotIdle is raised.
        raise_errors: Whether to raise the first exception of a handler, once the failure is stored. Otherwise
            all of them are in `Idle.errors`. They are stored in any case, as in production.
        session_factory: Where `ctx.transaction` gets its sessions, as with a Worker.
        async_session_factory: The same for async handlers.

    Returns:
        The runs, and the tasks that are left.

    Raises:
        NotIdle: There was still work after `limit` runs or `timeout` seconds. A handler spawns without end or
            hangs, or a run waits for a lock of the test's own open transaction.
        InvalidOptions: An event loop is running, or the engine is an AsyncEngine.
    """
    if hasattr(engine, "sync_engine") or _loop_is_running():
        raise InvalidOptions(
            "run_until_idle can't be used in a running event loop or with an AsyncEngine: "
            "use await run_until_idle_async(...)"
        )
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(
            run_until_idle_async(
                engine,
                *queues,
                limit=limit,
                timeout=timeout,
                raise_errors=raise_errors,
                session_factory=session_factory,
                async_session_factory=async_session_factory,
            )
        )
    finally:
        close_loop(loop)


async def run_until_idle_async(
    engine: EngineOrUrl,
    *queues: type[DurableTask],
    limit: int = MAX_RUNS,
    timeout: float = TIMEOUT_S,
    raise_errors: bool = False,
    session_factory: SessionFactory | None = None,
    async_session_factory: AsyncSessionFactory | None = None,
) -> Idle:
    """Do what `run_until_idle` does, in a running event loop, which runs async handlers, for any engine."""
    worker = DrivenWorker(engine, queues, session_factory, async_session_factory)
    runs: list[FinishedRun] = []
    error: BaseException | None = None
    try:
        async with asyncio.timeout(timeout) as bound:
            while error is None and (run := await worker.claim_next()) is not None:
                if len(runs) == limit:
                    raise NotIdle(_not_idle(runs, None, f"{limit} runs"))
                runs.append(await worker.run_next(run))
                error = runs[-1].error if raise_errors else None
            remaining = await worker.remaining()
    except TimeoutError as late:
        if not bound.expired():
            raise
        raise NotIdle(_not_idle(runs, worker.claimed, f"{timeout:g} seconds")) from late
    finally:
        await worker.close()
    if error is not None:
        raise error
    return Idle(tuple(runs), tuple(remaining))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _not_idle(runs: list[FinishedRun], claimed: ActiveRun | None, what: str) -> str:
    names = ", ".join(
        f"{number} x {name}" for name, number in Counter(run.name for run in runs).most_common(MAX_LISTED)
    )
    message = f"not idle after {what}; ran: {names or 'nothing'}"
    if claimed is not None:
        message += f"; still running: {claimed.claim.name}, attempt {claimed.claim.attempt}"
    return message
