"""The operations that contexts offer, assembled once for a worker."""

from __future__ import annotations

from dataclasses import dataclass

from ...values import Json
from ..runs.active import ActiveRun
from ..threads.pool import DaemonThreadPool
from .steps import Steps
from .transactions import Transactions
from .waits import Waits

CONTEXT_THREADS = 4
"""Threads, and so connections, for the operations of async contexts, however many handlers run."""


@dataclass(frozen=True, slots=True)
class ContextOperations:
    """The blocking operations of contexts, and threads for async handlers, which mustn't block."""

    steps: Steps
    waits: Waits
    transactions: Transactions
    threads: DaemonThreadPool
    """Threads for the library's own statements."""
    user_threads: DaemonThreadPool
    """Threads for sync functions of the application that an async handler passes to `ctx.transaction`."""

    async def save(self, run: ActiveRun, name: str, text: str) -> Json:
        """Async version of `Steps.save`."""
        return await self.threads.call(self.steps.save, run, name, text)

    def close(self) -> None:
        """Stop the threads and close the connections, but for those that belong to the event loop."""
        self.threads.stop()
        self.user_threads.stop()
        self.transactions.close()
