"""Running tasks: the worker, and the contexts that handlers are given. asyncio and threads live here only."""

from .context.aio import AsyncTaskContext
from .context.current import current_context
from .context.manual_step import Step
from .context.sync import TaskContext
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
