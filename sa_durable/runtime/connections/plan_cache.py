"""Discard prepared plans that no longer match the size of the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from sqlalchemy.orm import Session

from ...statements import plan_shape
from ..tuning import DEFAULT_TUNING, Tuning

_KEY = "sa_durable_planned_at"
"""Key in the `info` of a connection: `time.monotonic()` of its last DISCARD PLANS."""


class PlanCache:
    """Discard the prepared plans of all connections that share this object, when statements have become slow.

    A prepared statement keeps its plan. A plan that is made while a queue is empty and vacuumed reads whole
    tables. PostgreSQL keeps using it for 20,000 tasks, where a claim then takes 64 ms instead of 3, until
    autovacuum analyzes the table, which happens once a minute at most (docs/decisions/0009). Rewriting the
    query does not help: a sequential scan of an empty table always has the lowest cost.

    Thread safety: no lock. A race between two threads makes PostgreSQL plan a statement once more than
    needed.

    Args:
        tuning: When a statement counts as slow, and how often plans may be discarded.
    """

    def __init__(self, tuning: Tuning = DEFAULT_TUNING) -> None:
        self._tuning = tuning
        self._outdated_before = 0.0
        """`time.monotonic()` before which a plan must have been made to be outdated. 0: none is."""
        self._slow_total = (0.0, 0.0)
        """Seconds in slow statements, and `time.monotonic()` since when they are counted."""

    @contextmanager
    def watching(self, session: Session) -> Iterator[None]:
        """Measure the block's statements. Discard outdated plans of the session's connection first."""
        started = monotonic()
        if not self.is_current(session):
            session.execute(plan_shape.discard_plans())
            _connection_info(session)[_KEY] = started = monotonic()
        yield
        self.record_duration(monotonic() - started)

    def is_current(self, session: Session) -> bool:
        """Return whether the plans of the session's connection are not known to be outdated."""
        return not self._outdated_before or _connection_info(session).get(_KEY, 0.0) >= self._outdated_before

    def record_duration(self, seconds: float) -> None:
        """Record how long a statement took. After too much time in slow ones, all plans are outdated."""
        if seconds <= self._tuning.slow_statement_s:
            return
        now, (total, since) = monotonic(), self._slow_total
        if now - since > self._tuning.plan_interval_s:
            total, since = 0.0, now
        total += seconds
        if total > self._tuning.slow_total_s and now - self._outdated_before > self._tuning.plan_interval_s:
            self._outdated_before, total = now, 0.0
        self._slow_total = total, since


def _connection_info(session: Session) -> dict[str, float]:
    info: dict[str, float] = session.connection().info
    return info
