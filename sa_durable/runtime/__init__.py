"""Running tasks: the worker, and the contexts that handlers are given. asyncio and threads live here only."""

from .context import AsyncTaskContext, TaskContext
from .worker import Worker

__all__ = ["AsyncTaskContext", "TaskContext", "Worker"]
