"""Threads that nobody waits for at exit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreadPool:
    """At most `size` threads, started as they are needed.

    concurrent.futures joins its threads when the interpreter exits: a handler that hangs would keep the process. These
    are daemons. Each call runs in a copy of its caller's context: it sees its variables, and leaves none behind.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = Lock()
        self._threads = 0
        self._call_limit = asyncio.Semaphore(size)
        self._free = 0  # waiting threads, less the calls on their way to them

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Have `fn(*args)` called, which raises nothing."""
        self._put(partial(copy_context().run, fn, *args))

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)` in a thread, awaited. If the awaiting task is cancelled before a thread is free, it isn't called."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = copy_context()

        def work() -> None:
            if future.cancelled():
                return
            try:
                reply = partial(_reply, future, context.run(fn, *args), None)
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                reply = partial(_reply, future, None, error)
            with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(reply)

        async with self._call_limit:
            self._put(work)
            return await future

    def _put(self, call: Callable[[], object]) -> None:
        with self._lock:
            start = self._free <= 0 and self._threads < self._size
            if start:
                self._threads += 1
            else:
                self._free -= 1
        self._calls.put(call)
        if start:
            Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Threads end once they are free; those that hang stay behind."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            call = None  # nor is what it was given kept, while there is nothing to do
            with self._lock:
                self._free += 1


def _reply(future: asyncio.Future[T], value: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled meanwhile
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # which no future takes
        future.set_exception(RuntimeError("StopIteration was raised"))
    else:
        future.set_exception(error)
