"""Tests wait for facts, never for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

T = TypeVar("T")


def wait_until(fact: Callable[[], T], timeout: float = 60, what: str = "the fact") -> T:
    """What `fact` returns once that is true. Fails after `timeout` seconds, which a process that starts may need."""
    deadline = time.monotonic() + timeout
    while not (value := fact()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.005)  # a poll, not a guess
    return value


def in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
    """Run `call` in a daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


# Not for autovacuum, which locks a table for some milliseconds to give the pages at its end back, and goes away by itself.
BLOCKED = text(
    "SELECT EXISTS (SELECT FROM unnest(pg_blocking_pids(:pid)) AS blocking, pg_stat_get_activity(blocking)"
    " WHERE backend_type = 'client backend')"
)


def pid_of(session: Session) -> int:
    return session.scalar(text("SELECT pg_backend_pid()"))


def wait_until_blocked(engine: Engine, pid: int, timeout: float = 60) -> None:
    """Until backend `pid` waits for a lock that another client holds."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(
            lambda: connection.scalar(BLOCKED, {"pid": pid}),
            timeout,
            f"backend {pid} to be blocked",
        )


def in_blocked_thread(
    engine: Engine, session: Session, call: Callable[..., T], *args: Any, **kwargs: Any
) -> Future[T]:
    """Run `call(session, ...)` in a thread. Returns once it waits for a lock that another client holds."""
    pid = pid_of(session)
    future = in_thread(call, session, *args, **kwargs)
    wait_until_blocked(engine, pid)
    return future


def wait_until_gone(engine: Engine, pid: int) -> None:
    """Until backend `pid` has ended. In AUTOCOMMIT, as above: in a transaction the server's activity looks as it did at first."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        gone = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
        wait_until(lambda: connection.scalar(gone, {"pid": pid}), what=f"backend {pid} to end")
