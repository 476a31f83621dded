"""Plans that fit the tables as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy.orm import Session

from ..statements import planning

SLOW = 0.005  # seconds
PAUSE = 1.0
_KEY = "sa_durable_planned"


class Plans:
    """Has what took long planned anew, on all connections that share this, at most once a second.

    A prepared statement keeps its plan. Made while a queue is empty, and vacuumed, it reads whole tables, and goes on
    doing so when 20,000 tasks are there, 64 ms a claim instead of 3, until autovacuum has looked at the table, which it
    does once a minute (docs/decisions/0009). No wording helps there: an empty table costs nothing to read.
    """

    def __init__(self) -> None:
        self._outdated = 0.0  # of monotonic(): plans from before that are

    @contextmanager
    def watching(self, session: Session) -> Iterator[None]:
        """While the session's statements run."""
        began = monotonic()
        if self._outdated:
            made = session.connection().info
            if made.get(_KEY, 0.0) < self._outdated:
                session.execute(planning.plan_anew())
                made[_KEY] = began = monotonic()
        yield
        now = monotonic()
        if now - began > SLOW and now - self._outdated > PAUSE:
            self._outdated = now
