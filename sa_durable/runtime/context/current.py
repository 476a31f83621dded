"""The context of the handler that is running here."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, TypeVar, overload

from ...errors import NoContext
from .aio import AsyncTaskContext
from .base import Context
from .sync import TaskContext

C = TypeVar("C", bound=Context)

_current: ContextVar[Context] = ContextVar("sa_durable_context")


@overload
def current_context() -> TaskContext | AsyncTaskContext: ...
@overload
def current_context(kind: type[C], /) -> C: ...
def current_context(kind: type[Any] = Context, /) -> Any:
    """The context of the handler that runs here, from anywhere below it: functions, steps, asyncio tasks.

    ::

        def log_progress(done: int) -> None:
            current_context(TaskContext).heartbeat()

    `kind` is what the caller can use, TaskContext or AsyncTaskContext. Raises NoContext outside of a handler, and where
    the handler is of the other kind. It is a context variable: asyncio's tasks and `asyncio.to_thread` inherit it, a
    thread of your own doesn't, unless you start it with `contextvars.copy_context().run`.
    """
    context = _current.get(None)
    if context is None:
        raise NoContext("no handler runs here: current_context() is for what a worker runs")
    if not isinstance(context, kind):
        raise NoContext(f"the handler that runs here has {type(context).__name__}, not {kind.__name__}")
    return context


def make_current(context: Context) -> None:
    """From here on, in this thread or asyncio task, and in what it starts."""
    _current.set(context)
