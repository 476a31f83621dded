"""Plans that fit the tables as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy.orm import Session

from ...statements import plan_shape
from ..tuning import DEFAULT_TUNING, Tuning

_KEY = "sa_durable_planned"


class PlanCache:
    """Has what took long planned anew, on all connections that share this, at most once a second.

    A prepared statement keeps its plan. Made while a queue is empty, and vacuumed, it reads whole tables, and goes on
    doing so when 20,000 tasks are there, 64 ms a claim instead of 3, until autovacuum has looked at the table, which it
    does once a minute (docs/decisions/0009). No wording helps there: an empty table costs nothing to read.
    """

    def __init__(self, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._tuning = tuning
        self._outdated = 0.0  # of monotonic(): plans from before that are
        self._slow_total = (0.0, 0.0)  # seconds in slow statements, since when

    @contextmanager
    def watching(self, session: Session) -> Iterator[None]:
        """While the session's statements run."""
        began = monotonic()
        if not self.is_current(session):
            session.execute(plan_shape.discard_plans())
            _connection_info(session)[_KEY] = began = monotonic()
        yield
        self.record_duration(monotonic() - began)

    def is_current(self, session: Session) -> bool:
        """Whether the plans of its connection do, as far as is known."""
        return not self._outdated or _connection_info(session).get(_KEY, 0.0) >= self._outdated

    def record_duration(self, seconds: float) -> None:
        """A statement did. Any thread; that two of them race costs a plan at most."""
        if seconds <= self._tuning.slow_statement_s:
            return
        now, (lost, since) = monotonic(), self._slow_total
        if now - since > self._tuning.plan_interval_s:
            lost, since = 0.0, now
        lost += seconds
        if lost > self._tuning.slow_total_s and now - self._outdated > self._tuning.plan_interval_s:
            self._outdated, lost = now, 0.0
        self._slow_total = lost, since


def _connection_info(session: Session) -> dict[str, float]:
    """What is known of its connection."""
    made: dict[str, float] = session.connection().info
    return made
