"""Running tasks: the worker, and the contexts that handlers are given. asyncio and threads live here only."""

from .async_context import AsyncTaskContext
from .begun import Step
from .current import current_context
from .plain_context import TaskContext
from .results import wait_for, wait_for_async
from .worker import Worker

__all__ = [
    "AsyncTaskContext",
    "Step",
    "TaskContext",
    "Worker",
    "current_context",
    "wait_for",
    "wait_for_async",
]
