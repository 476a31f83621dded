"""Several waits of one run at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from ...services.waits import Awaited
from ...values import Json
from ..runs.active import ActiveRun

if TYPE_CHECKING:
    from .operations import ContextOperations

REGISTERED, LOOKED = 1, 2  # what each of them has done


class GatheredWaits:
    """The waits of an async run. Those that are gathered go to sleep together: once all are registered, and each has
    looked again after that. What isn't registered when its run falls asleep wakes nobody."""

    def __init__(self, verbs: ContextOperations) -> None:
        self._call, self._waits = verbs.threads.call, verbs.waits
        self._done: dict[str, int] = {}  # by step
        self._changed = asyncio.Event()
        self._falling_asleep = asyncio.Lock()

    async def wait(self, run: ActiveRun, step: str, what: Awaited, timeout: timedelta | None) -> Json:
        """As Waits.wait."""
        self._note(step, 0)
        try:
            await asyncio.sleep(0)  # the others have begun by then
            if len(self._done) == 1:
                return await self._call(self._waits.wait, run, step, what, timeout)
            for done in (REGISTERED, LOOKED):
                arrived = await self._call(self._waits.register, run, step, what, timeout)
                if arrived is not None:
                    return arrived.value
                await self._all_have(done, step)
            async with self._falling_asleep:
                await asyncio.sleep(0)  # one whose event was there may wait for the next
                await self._all_have(LOOKED, step)
                return await self._call(self._waits.wait, run, step, what, timeout)
        finally:
            self._note(step, None)

    def _note(self, step: str, done: int | None) -> None:
        if done is None:
            self._done.pop(step, None)
        else:
            self._done[step] = done
        self._changed.set()
        self._changed = asyncio.Event()

    async def _all_have(self, done: int, step: str) -> None:
        self._note(step, done)
        while min(self._done.values()) < done:
            await self._changed.wait()
