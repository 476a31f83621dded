"""A pool of daemon threads, for blocking calls of the event loop and for sync handlers."""

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
    """A pool of daemon threads that are started when they are needed, at most `size` of them.

    `concurrent.futures` joins its threads when the interpreter exits, so that a handler that hangs would keep
    the process alive. Daemon threads don't.

    Each call runs in a copy of its caller's context: it sees the caller's context variables, and changes
    none.

    Args:
        name: Name of the threads.
        size: Largest number of threads, and of concurrent `call`s.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._call_limit = asyncio.Semaphore(size)
        self._lock = Lock()
        """Guards `_threads` and `_free`."""
        self._threads = 0
        """Number of started threads."""
        self._free = 0
        """Number of waiting threads minus the calls that are queued for them."""

    def submit(self, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` in a thread, without waiting for the result. `fn` must not raise."""
        self._put(partial(copy_context().run, fn, *args))

    async def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Return the result of `fn(*args)`, called in a thread.

        If the awaiting task is cancelled before a thread is free, `fn` is not called. If it is cancelled
        later, `fn` runs to its end and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = copy_context()

        def work() -> None:
            if future.cancelled():
                return
            try:
                reply = partial(_reply, future, context.run(fn, *args), None)
            except BaseException as error:  # noqa: BLE001 - raised in the awaiting task
                reply = partial(_reply, future, None, error)
            with suppress(RuntimeError):  # the loop is closed: nothing awaits the result any more
                loop.call_soon_threadsafe(reply)

        async with self._call_limit:
            self._put(work)
            return await future

    def stop(self) -> None:
        """End the threads, each after its current call. A thread whose call hangs stays behind."""
        for _ in range(self._threads):
            self._calls.put(None)

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

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            call = None  # an idle thread must not keep the arguments of its last call alive
            with self._lock:
                self._free += 1


def _reply(future: asyncio.Future[T], value: Any, error: BaseException | None) -> None:
    if future.done():  # the awaiting task was cancelled
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # no future accepts this exception
        future.set_exception(RuntimeError("StopIteration was raised"))
    else:
        future.set_exception(error)
