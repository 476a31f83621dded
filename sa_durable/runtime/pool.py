"""Threads that nobody waits for at exit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """At most `size` threads, started as they are needed.

    concurrent.futures joins its threads when the interpreter exits: a handler that hangs would keep the process. These
    are daemons. Each call runs in a context of its own, so context variables don't leak from one to the next.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = Lock()
        self._threads = 0
        self._free = 0  # waiting threads, less the calls on their way to them

    def submit(self, fn: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(copy_context().run(fn, *args))
            except BaseException as error:  # noqa: BLE001 - the future carries it to whoever asked
                future.set_exception(error)

        with self._lock:
            start = self._free <= 0 and self._threads < self._size
            if start:
                self._threads += 1
            else:
                self._free -= 1
        if start:
            Thread(target=self._run, args=(call,), name=self._name, daemon=True).start()
        else:
            self._calls.put(call)
        return future

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """`fn(*args)` in a thread, awaited."""
        return await asyncio.wrap_future(self.submit(fn, *args))

    def stop(self) -> None:
        """Threads end once they are free; those that hang stay behind."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _run(self, call: Callable[[], None] | None) -> None:
        while call is not None:
            call()
            with self._lock:
                self._free += 1
            call = self._calls.get()
