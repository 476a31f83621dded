"""What contexts can do, put together once for a worker."""

from __future__ import annotations

from dataclasses import dataclass

from ...values import Json
from ..runs.active import ActiveRun
from ..threads.pool import DaemonThreadPool
from .steps import Steps
from .transactions import Transactions
from .waits import Waits

CONTEXT_THREADS = 4  # connections for contexts, however many handlers run


@dataclass(frozen=True, slots=True)
class ContextOperations:
    """Blocking functions, and threads for those who can't block: `threads` for the library's own statements,
    `user_threads` for plain functions of the application that an async handler hands over."""

    steps: Steps
    waits: Waits
    transactions: Transactions
    threads: DaemonThreadPool
    user_threads: DaemonThreadPool

    async def save(self, run: ActiveRun, name: str, text: str) -> Json:
        """As Steps.save, for who can't block."""
        return await self.threads.call(self.steps.save, run, name, text)

    def close(self) -> None:
        self.threads.stop()
        self.user_threads.stop()
        self.transactions.close()
