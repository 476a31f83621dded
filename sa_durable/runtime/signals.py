"""What `Worker.run` does to its process: handle SIGTERM and SIGINT, and close the event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

UNWIND_S = 2.0
"""How long cancelled handlers may take for their `finally` blocks."""


@contextmanager
def stop_signals(call: Callable[[], None]) -> Iterator[None]:
    """Make SIGTERM and SIGINT call `call` instead of ending the process. Only works in the main thread."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        call()

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError):  # not the main thread
            previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed by Python, and Python can't restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop without waiting for threads: asyncio.run would wait for a handler's thread that hangs."""
    try:
        unfinished = asyncio.all_tasks(loop)
        for task in unfinished:
            task.cancel()
        if unfinished:
            loop.run_until_complete(asyncio.wait(unfinished, timeout=UNWIND_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
