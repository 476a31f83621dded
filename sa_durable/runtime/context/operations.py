"""What contexts can do, put together once for a worker."""

from __future__ import annotations

from dataclasses import dataclass

from ...values import Json
from ..runs.active import LiveRun
from ..threads.pool import DaemonThreads
from .steps import Steps
from .transactions import Transactions
from .waits import Waits

THREADS = 4  # connections for contexts, however many handlers run


@dataclass(frozen=True, slots=True)
class Verbs:
    """Blocking functions, and threads for those who can't block: `threads` for the library's own statements,
    `user_threads` for plain functions of the application that an async handler hands over."""

    steps: Steps
    waits: Waits
    transactions: Transactions
    threads: DaemonThreads
    user_threads: DaemonThreads

    async def save(self, run: LiveRun, name: str, text: str) -> Json:
        """As Steps.save, for who can't block."""
        async with self.threads.turn:
            saved = await self.steps.save_soon(run, name, text)
        return await self.threads.call(self.steps.save, run, name, text) if saved is None else saved.value

    def close(self) -> None:
        self.steps.close()
        self.threads.stop()
        self.user_threads.stop()
        self.transactions.close()
