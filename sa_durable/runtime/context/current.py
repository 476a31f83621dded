"""Find the context of the handler that is running."""

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
    """Return the context of the handler that is running, from anywhere below it.

    ::

        def log_progress(done: int) -> None:
            current_context(TaskContext).heartbeat()

    The context is a context variable: asyncio tasks and `asyncio.to_thread` inherit it. A thread that you
    start yourself doesn't, unless you start it with `contextvars.copy_context().run`.

    Args:
        kind: The class that the caller can use, TaskContext or AsyncTaskContext.

    Raises:
        NoContext: No handler is running here, or its context is of the other kind.
    """
    context = _current.get(None)
    if context is None:
        raise NoContext(
            "current_context(): no handler runs here. Call it in a handler, or in what a handler calls"
        )
    if not isinstance(context, kind):
        raise NoContext(
            f"current_context({kind.__name__}): the handler that runs here has a {type(context).__name__}"
        )
    return context


def make_current(context: Context) -> None:
    """Set the context of the current thread or asyncio task, and of the tasks that it starts."""
    _current.set(context)
