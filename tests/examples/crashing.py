"""Workers of the fulfilment example that note each boundary they pass, and can be told to die at one: kill -9.

A boundary is a point where something is in the database, or has happened outside it, that wasn't before: a task was
claimed and its handler begins, the function of a step or transaction has run, a transaction has committed: a
handler's, or the library's on its behalf. Between two of them a crash is a crash. The library has no hooks for this:
the contexts' methods are wrapped in the worker's process.

Run as a program it forks a worker for each line of its input, which starts in milliseconds: everything is imported.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from threading import Lock, current_thread
from typing import Any

from fulfilment.models import MailTask, OrderTask, ParcelTask
from fulfilment.tasks import fulfil, notify, send_parcel
from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session, configure_mappers

from sa_durable import AsyncTaskContext, TaskContext, Worker
from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.context.checkpoint_saver import CheckpointSaver

QUEUES = [OrderTask, ParcelTask, MailTask]
WITH_FUNCTION = ("step", "transaction")
VERBS = (*WITH_FUNCTION, "await_event", "spawn_many", "join_all")
# Threads in which handlers and what they ask for is done; what the others commit depends on time.
OF_HANDLERS = ("MainThread", "sa_durable handler", "sa_durable context")
OF_ENDS = "sa_durable completer"


class Boundaries:
    """Writes the name of each boundary to `log`, and kills this process at `die_at`."""

    def __init__(self, log: str, die_at: str | None) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._die_at = die_at
        self._passed: Counter[str] = Counter()
        self._lock = Lock()
        self._doing = ""  # one handler runs at a time

    def watch(self) -> None:
        """From now on, in this process."""
        for context in (TaskContext, AsyncTaskContext):
            for verb in VERBS:
                setattr(context, verb, self._watched_verb(verb, getattr(context, verb)))
        for handler in (fulfil, send_parcel, notify):
            handler.fn = self._watched(handler.name, handler.fn, begins=True)
        event.listen(Session, "after_commit", self._committed)
        Database.autocommit = self._watched_once(Database.autocommit)
        CheckpointSaver.save = self._watched_save(CheckpointSaver.save)

    def _watched_once(self, once: Callable[..., Any]) -> Callable[..., Any]:
        """What is sent there is committed, statement by statement, without a commit of the session's."""

        @contextmanager
        def watched(database: Database) -> Iterator[Session]:
            with once(database) as session:
                yield session
            self._committed(session)

        return watched

    def _watched_save(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """What goes straight to libpq passes no session. It returns what is committed, or None: then it is tried in one."""

        def watched(*args: Any) -> Any:
            saved = save(*args)
            if saved is not None:
                self._committed(None)
            return saved

        return watched

    def _pass(self, name: str) -> None:
        with self._lock:
            self._passed[name] += 1
            numbered = f"{name} #{self._passed[name]}"
            os.write(self._log, f"{numbered}\n".encode())
            if numbered == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def _committed(self, _: Session | None) -> None:
        thread = current_thread().name
        if thread in OF_HANDLERS:
            self._pass(f"{self._doing} committed")
        elif thread == OF_ENDS:
            self._pass("an end committed")

    def _watched_verb(self, verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def watched(ctx: Any, what: Any, *args: Any, **kwargs: Any) -> Any:
            self._doing = f"{ctx.name}: {verb} {what if isinstance(what, str) else ''}".rstrip()
            if verb in WITH_FUNCTION:
                fn, *args = args
                args = [self._watched(self._doing, fn), *args]
            return method(ctx, what, *args, **kwargs)

        return watched

    def _watched(self, name: str, fn: Callable[..., Any], *, begins: bool = False) -> Callable[..., Any]:
        """`fn`, of which it is a boundary that it has returned; or, `begins`, that it is called."""

        def called() -> None:
            if begins:
                self._doing = name
                self._pass(f"{name} begins")

        def returned() -> None:
            if not begins:
                self._pass(f"{name} ran")

        if inspect.iscoroutinefunction(fn):

            @wraps(fn)
            async def watched(*args: Any, **kwargs: Any) -> Any:
                called()
                value = await fn(*args, **kwargs)
                returned()
                return value
        else:

            @wraps(fn)
            def watched(*args: Any, **kwargs: Any) -> Any:
                called()
                value = fn(*args, **kwargs)
                returned()
                return value

        return watched


def work(url: str, worker_id: str, log: str, die_at: str | None) -> None:
    """Run a worker in this process until it is killed."""
    Boundaries(log, die_at).watch()
    # One at a time, so that every worker passes the same boundaries.
    quick = {
        "notify": False,
        "poll_interval": timedelta(milliseconds=50),
        "sweep_interval": timedelta(milliseconds=200),
    }
    Worker(create_engine(url), QUEUES, concurrency=1, prefetch=0, worker_id=worker_id, **quick).run()


def serve() -> None:
    """Fork a worker with the arguments that a line holds; an empty line, or the end of the input, kills it. Print
    how it ended."""
    configure_mappers()
    # Unbuffered: who is told to start and at once to end must not keep the second line where select doesn't see it.
    orders = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - as long as the process
    for line in iter(orders.readline, b""):
        if line.isspace() or not line.endswith(b"\n"):  # to kill one that has died by itself; cut off: we end
            continue
        if (pid := os.fork()) == 0:
            work(**json.loads(line))
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if select.select([orders], [], [], 0.005)[0]:
                orders.readline()
                os.kill(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                break
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)


if __name__ == "__main__":
    serve()
