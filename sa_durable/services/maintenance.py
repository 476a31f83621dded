"""What becomes of tasks that nobody attends to. Each call does a bounded amount of work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from .. import policy
from ..statements import cancellation as cancel_stmt
from ..statements import claims as claim_stmt
from ..statements import maintenance as stmt
from ..values import TaskError
from . import cancellation, runs
from .claims import read_json
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


@dataclass(frozen=True, slots=True)
class Promoted:
    """`woken` sleepers are pending now; the next one is due in `next_due` (None: there is none)."""

    woken: int
    next_due: timedelta | None


def promote(session: Session, model: Model, *, limit: int) -> Promoted:
    """Wake up to `limit` sleepers that are due, passing over locked ones."""
    row = execute(session, stmt.promote(model), {"limit": limit}).one()
    return Promoted(row.woken, row.next_due)


@dataclass(frozen=True, slots=True)
class Expired:
    """A run whose worker stopped extending its lease. It is in the history as failed."""

    task_id: UUID
    attempt: int
    worker: str | None
    retried: bool  # False: that was its last attempt, the task has failed


def sweep_expired(session: Session, model: Model, *, limit: int) -> list[Expired]:
    """Take up to `limit` tasks away from workers that let their leases expire, the oldest first: the next attempt
    is ready at once, or the task has failed, and what descends from it is cancelled. Tasks that somebody has locked
    are passed over.

    In a transaction of its own: what is locked is judged and written before anybody else may. Call it until it
    returns nothing: of those that fail and have children it takes one at a time.
    """
    with session.begin_nested() as locks:
        overdue = list(execute(session, claim_stmt.expired(model), {"limit": limit}))
        batch = _without_parents(session, model, overdue, [row.id for row in overdue if _may_be_final(row)])
        if not batch:
            locks.rollback()
    if overdue and not batch:  # only families: one of them, root to leaf, holding no other's lock
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
    """Those of `rows` whose end is theirs alone: all but the `final` ones that have active children."""
    families = cancellation.with_children(session, model, final)
    return [row for row in rows if row.id not in families]


@dataclass(frozen=True, slots=True)
class Overdue:
    """`cancelled` tasks whose time was over; the next one is due in `next_due` (None: there is none)."""

    cancelled: list[UUID]
    next_due: timedelta | None


def sweep_overdue(session: Session, model: Model, *, limit: int) -> Overdue:
    """Cancel up to `limit` tasks whose time to start, or to end, is over, with what descends from them. Locked ones
    are passed over.

    In a transaction of its own. Call it until it cancels nothing: of those that have children it takes one at a time.
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


TOO_LATE = TaskError(TaskError.DEADLINE_EXCEEDED, "it had not started within its `start_within`")
TOO_LONG = TaskError(TaskError.DEADLINE_EXCEEDED, "it had not ended within its `max_duration`")


def _expiry_verdict(row: Any) -> policy.Verdict:
    retry = runs.retry_policy(read_json(row.retry, None))
    return policy.after_lease_expired(retry, attempt=row.attempt, max_attempts=row.max_attempts)


def _error(row: Any) -> TaskError:
    return TaskError(
        TaskError.LEASE_EXPIRED,
        f"worker {row.claimed_by} stopped extending its lease in attempt {row.attempt}; "
        f"it ran out at {row.lease_expires_at.isoformat()}",
    )
