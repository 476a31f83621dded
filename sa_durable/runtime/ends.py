"""Hearing of ends of tasks that this process waits for: one connection for all who wait through one pool."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Pool

from ..statements.notifications import ENDED
from .database import Database, EngineOrUrl, engine_for
from .listening import Listening

Call = Callable[[], object]
_listening: WeakKeyDictionary[Pool, Ends] = WeakKeyDictionary()
_lock = Lock()


class Ends(Listening):
    """Calls who waits for a task when its end is notified, and everybody when notifications may have been missed."""

    def __init__(self, database: Database) -> None:
        super().__init__("wait_for", database, ENDED)
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)  # under _lock

    def _began(self) -> None:
        self._works()
        with _lock:
            calls = [call for waiting in self.calls.values() for call in waiting]
        for call in calls:
            call()

    def _hear(self, payload: str) -> None:
        with _lock:
            calls = list(self.calls.get(payload, ()))
        for call in calls:
            call()


@contextmanager
def calling(engine: EngineOrUrl, task_id: UUID, call: Call) -> Iterator[None]:
    """Have `call` called, in another thread, when the task may have ended. It is a hint."""
    pool: Pool = engine.pool  # an AsyncEngine has its own, too
    name = str(task_id)
    with _lock:
        ends = _listening.get(pool)
        if ends is None:
            ends = _listening[pool] = Ends(Database(engine_for(engine)))
            ends.chore.start()
        ends.calls[name].append(call)
    try:
        yield
    finally:
        with _lock:
            ends.calls[name].remove(call)
            if not ends.calls[name]:
                del ends.calls[name]
            last = not ends.calls
            if last:  # who comes next begins anew
                _listening.pop(pool, None)
        if last:
            ends.chore.stop()
