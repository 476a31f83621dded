"""The event loop that a worker runs in, as its other threads see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")


class EventLoopHandle:
    """Schedule calls on the worker's event loop, from any thread.

    The worker's parts are made before the worker runs, so the handle is empty until `attach`. A call that is
    posted before that, or once the loop is closed, is dropped: `Shutdown` then releases what the worker
    holds.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Use the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    @property
    def attached(self) -> bool:
        """Whether `attach` was called."""
        return self._loop is not None

    @property
    def usable(self) -> bool:
        """Whether posted calls are scheduled: the loop is known and not closed."""
        return self._loop is not None and not self._loop.is_closed()

    def post(self, call: Callable[[*Ts], object], *args: *Ts) -> None:
        """Schedule `call(*args)` on the loop."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(call, *args)
