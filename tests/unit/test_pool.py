"""Threads for those who can't block."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Event, get_ident

from sa_durable.runtime.threads.pool import DaemonThreadPool


def test_a_call_whose_caller_was_cancelled_costs_no_thread():
    gate, begun, ran = Event(), Event(), []

    def first() -> None:
        begun.set()
        assert gate.wait(20)

    async def main() -> None:
        threads = DaemonThreadPool("test", 1)
        running = asyncio.create_task(threads.call(first))
        queued = asyncio.create_task(threads.call(ran.append, "queued"))
        await asyncio.to_thread(begun.wait, 20)
        for task in (running, queued):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        gate.set()
        assert await threads.call(get_ident) != get_ident()
        threads.stop()

    asyncio.run(asyncio.wait_for(main(), 20))
    assert ran == []  # what hadn't begun never does
