"""Running due work in process, until there is none."""

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
from ..runtime.tuning import DEFAULT_TUNING, Tuning
from .driven import DrivenWorker, Left, Ran

if TYPE_CHECKING:
    from ..models import DurableTask

LIMIT = 1000  # runs
TIMEOUT = 30.0  # seconds


class NotIdle(AssertionError):
    """Work went on after as many runs, or seconds, as it was given. The run in hand was given back; what the earlier
    ones did is stored."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What ran until there was nothing to do, in order, and what is left: at most a thousand tasks, the next first."""

    ran: tuple[Ran, ...]
    left: tuple[Left, ...]

    @property
    def errors(self) -> list[BaseException]:
        """What handlers raised, retried or not."""
        return [run.error for run in self.ran if run.error is not None]

    @property
    def next_due(self) -> datetime | None:
        """When the next sleeper wakes by itself. None: none does."""
        return min((task.due for task in self.left if task.due is not None), default=None)


def run_until_idle(
    engine: EngineOrUrl,
    *queues: type[DurableTask],
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
    session_factory: SessionFactory | None = None,
    async_session_factory: AsyncSessionFactory | None = None,
    _tuning: Tuning = DEFAULT_TUNING,
) -> Idle:
    """Run the due tasks of `queues`, one after the other, until none is left that the database's clock says is due.

    All that workers do is done, by the worker's own code: plain and async handlers, steps, retries, sleeps, events,
    children in any of these queues, lost leases, deadlines. What sleeps is left asleep (`clock` wakes it); what was not
    committed is not seen; nothing is cleaned up, whatever the queues' retention.

    What handlers raise is stored, as in production, and in `Idle.errors`; with `raise_errors` the first of it is raised
    once it is stored. Raises NotIdle after `limit` runs or `timeout` seconds: something spawns without end, hangs, or
    waits for a lock of the test's own open transaction.

    `ctx.transaction` gets its sessions from the factories, as with a Worker. In a running event loop, or for an
    AsyncEngine: `await run_until_idle_async(...)`.
    """
    if hasattr(engine, "sync_engine") or _in_a_loop():
        raise InvalidOptions(
            "in a running event loop, and for an AsyncEngine, which belongs to one: "
            "await run_until_idle_async(...)"
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
                _tuning=_tuning,
            )
        )
    finally:
        close_loop(loop)


async def run_until_idle_async(
    engine: EngineOrUrl,
    *queues: type[DurableTask],
    limit: int = LIMIT,
    timeout: float = TIMEOUT,
    raise_errors: bool = False,
    session_factory: SessionFactory | None = None,
    async_session_factory: AsyncSessionFactory | None = None,
    _tuning: Tuning = DEFAULT_TUNING,
) -> Idle:
    """As `run_until_idle`, inside a running event loop, on which async handlers then run; for any engine."""
    worker = DrivenWorker(engine, queues, session_factory, async_session_factory, _tuning)
    ran: list[Ran] = []
    error: BaseException | None = None
    try:
        async with asyncio.timeout(timeout) as bound:
            while error is None and (run := await worker.claim_next()) is not None:
                if len(ran) == limit:
                    raise NotIdle(_busy(ran, None, f"{limit} runs"))
                ran.append(await worker.run_next(run))
                error = ran[-1].error if raise_errors else None
            left = await worker.left()
    except TimeoutError as late:
        if not bound.expired():
            raise
        raise NotIdle(_busy(ran, worker.claimed, f"{timeout:g} seconds")) from late
    finally:
        await worker.close()
    if error is not None:
        raise error
    return Idle(tuple(ran), tuple(left))


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _busy(ran: list[Ran], in_hand: ActiveRun | None, what: str) -> str:
    names = ", ".join(
        f"{number} x {name}" for name, number in Counter(run.name for run in ran).most_common(5)
    )
    message = f"not idle after {what}; ran: {names or 'nothing'}"
    if in_hand is not None:
        message += f"; still in hand: {in_hand.claim.name}, attempt {in_hand.claim.attempt}"
    return message
