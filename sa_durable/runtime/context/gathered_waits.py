"""Several waits of one async run at the same time, as `asyncio.gather` makes them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import IntEnum
from typing import TYPE_CHECKING

from ...services.waits import Awaited
from ...values import Json
from ..runs.active import ActiveRun

if TYPE_CHECKING:
    from .operations import ContextOperations


class _Progress(IntEnum):
    """How far a wait has got."""

    STARTED = 0
    REGISTERED = 1
    CHECKED_AGAIN = 2


class GatheredWaits:
    """The unfinished waits of an async run, which suspend the run together.

    All of them are registered first. Then each is checked once more. Only then the run sleeps: a wait that
    isn't registered when its run falls asleep would never wake it.

    Args:
        operations: The waits, and the threads to call them in.
    """

    def __init__(self, operations: ContextOperations) -> None:
        self._call, self._waits = operations.threads.call, operations.waits
        self._progress: dict[str, _Progress] = {}
        """The progress of each unfinished wait, by its step's key."""
        self._changed = asyncio.Event()
        """Set when `_progress` changes; then replaced by a new event."""
        self._falling_asleep = asyncio.Lock()

    async def wait(self, run: ActiveRun, step: str, awaited: Awaited, timeout: timedelta | None) -> Json:
        """Async version of `Waits.wait`: the run sleeps once all its waits have to."""
        self._set_progress(step, _Progress.STARTED)
        try:
            await asyncio.sleep(0)  # until then, the other waits of an asyncio.gather have started
            if len(self._progress) == 1:
                return await self._call(self._waits.wait, run, step, awaited, timeout)
            for progress in (_Progress.REGISTERED, _Progress.CHECKED_AGAIN):
                arrived = await self._call(self._waits.register, run, step, awaited, timeout)
                if arrived is not None:
                    return arrived.value
                await self._until_all(step, progress)
            async with self._falling_asleep:
                await asyncio.sleep(0)  # a wait that has arrived may be followed by another one
                await self._until_all(step, _Progress.CHECKED_AGAIN)
                return await self._call(self._waits.wait, run, step, awaited, timeout)
        finally:
            self._set_progress(step, None)

    def _set_progress(self, step: str, progress: _Progress | None) -> None:
        if progress is None:
            self._progress.pop(step, None)
        else:
            self._progress[step] = progress
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until_all(self, step: str, progress: _Progress) -> None:
        """Note the progress of a wait, then wait until all have got that far."""
        self._set_progress(step, progress)
        while min(self._progress.values()) < progress:
            await self._changed.wait()
