"""Maintenance: promote due sleepers, expire leases, enforce deadlines.

Each call handles at most `limit` tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from .. import policy
from ..statements import cancellation as cancel_stmt
from ..statements import claims as claim_stmt
from ..statements import maintenance as stmt
from ..statements.tables import Model
from ..values import TaskError
from . import cancellation, runs
from .claims import read_json
from .execute import execute


@dataclass(frozen=True, slots=True)
class Promoted:
    """The result of `promote`."""

    woken: int
    """How many sleeping tasks became pending."""
    next_due: timedelta | None
    """Time until the next sleeping task is due. None: no task sleeps."""


def promote(session: Session, model: Model, *, limit: int) -> Promoted:
    """Make up to `limit` sleeping tasks pending that are due. Skips locked tasks."""
    row = execute(session, stmt.promote(model), {"limit": limit}).one()
    return Promoted(row.woken, row.next_due)


@dataclass(frozen=True, slots=True)
class Expired:
    """A run that was failed because its worker stopped extending its lease."""

    task_id: UUID
    attempt: int
    worker: str | None
    retried: bool
    """Whether the task has another attempt. False: the task has failed."""


def sweep_expired(session: Session, model: Model, *, limit: int) -> list[Expired]:
    """Fail up to `limit` runs whose leases have expired, the oldest first. Skips locked tasks.

    The next attempt is ready at once. If there is none, the task has failed, and its descendants are
    cancelled.

    Needs a transaction of its own, which locks the tasks before it decides about them. Call it until it
    returns nothing: failing tasks that have children are handled one at a time.
    """
    with session.begin_nested() as locks:
        overdue = list(execute(session, claim_stmt.expired(model), {"limit": limit}))
        batch = _without_parents(session, model, overdue, [row.id for row in overdue if _may_be_final(row)])
        if not batch:
            locks.rollback()
    if overdue and not batch:  # all have children: handle one, from root to leaf, without other locks
        return _expire_one(session, model)
    ended = [runs.Failed(row.id, row.token, _error(row), _expiry_verdict(row)) for row in batch]
    stored = runs.fail_many(session, model, ended) if ended else None
    return [_expired(row, stored) for row in batch if stored and row.id in stored.reached]


def _expire_one(session: Session, model: Model) -> list[Expired]:
    row = execute(session, claim_stmt.expired(model), {"limit": 1}).first()
    if row is None:
        return []
    stored = runs.fail_root(session, model, runs.Failed(row.id, row.token, _error(row), _expiry_verdict(row)))
    return [_expired(row, stored)]


def _expired(row: Any, stored: runs.Stored) -> Expired:
    return Expired(row.id, row.attempt, row.claimed_by, row.id not in stored.final)


def _may_be_final(row: Any) -> bool:
    return row.cancel_at is not None or isinstance(_expiry_verdict(row), policy.GiveUp)


def _without_parents(session: Session, model: Model, rows: list[Any], final: list[UUID]) -> list[Any]:
    """Return `rows` without the tasks among `final` that have active children."""
    families = cancellation.with_children(session, model, final)
    return [row for row in rows if row.id not in families]


@dataclass(frozen=True, slots=True)
class Overdue:
    """The result of `sweep_overdue`."""

    cancelled: list[UUID]
    """Tasks that were past their deadline."""
    next_due: timedelta | None
    """Time until the next deadline. None: no task has one."""


def sweep_overdue(session: Session, model: Model, *, limit: int) -> Overdue:
    """Cancel up to `limit` tasks that are past a deadline, with their descendants. Skips locked tasks.

    Needs a transaction of its own. Call it until it cancels nothing: tasks that have children are handled one
    at a time.
    """
    with session.begin_nested() as locks:
        rows = list(execute(session, cancel_stmt.overdue(model), {"limit": limit}))
        batch = _without_parents(session, model, rows, [row.id for row in rows])
        if not batch:
            locks.rollback()
    if rows and not batch:
        batch = list(execute(session, cancel_stmt.overdue(model), {"limit": 1}))
    if batch:
        late = [row.id for row in batch if row.started]
        for ids, error in ((late, TOO_LONG), ([row.id for row in batch if not row.started], TOO_LATE)):
            cancellation.cancel_locked(session, model, ids, error)
        for row in batch if len(batch) == 1 else ():
            cancellation.cancel_descendants(session, model, row.id)
    next_due = execute(session, cancel_stmt.next_overdue(model)).scalar_one()
    return Overdue([row.id for row in batch], next_due)


TOO_LATE = TaskError(TaskError.DEADLINE_EXCEEDED, "the task had not started within its `start_within`")
TOO_LONG = TaskError(TaskError.DEADLINE_EXCEEDED, "the task had not ended within its `max_duration`")


def _expiry_verdict(row: Any) -> policy.Verdict:
    retry = runs.retry_policy(read_json(row.retry, None))
    return policy.after_lease_expired(retry, attempt=row.attempt, max_attempts=row.max_attempts)


def _error(row: Any) -> TaskError:
    return TaskError(
        TaskError.LEASE_EXPIRED,
        f"worker {row.claimed_by} stopped extending its lease in attempt {row.attempt}; "
        f"the lease expired at {row.lease_expires_at.isoformat()}",
    )
