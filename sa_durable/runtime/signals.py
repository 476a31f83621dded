"""What a worker does to its process: it takes the signals, and winds up the loop that it ran in."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

UNWIND_S = 2.0  # seconds that cancelled handlers have for their `finally` blocks


@contextmanager
def stop_signals(call: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `call` instead of ending the process. Nothing, outside the main thread."""

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
            # None: something that Python didn't install, and can't put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop without waiting for threads: asyncio.run would, for as long as a handler's thread hangs."""
    try:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=UNWIND_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
