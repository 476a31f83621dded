"""What becomes of tasks that nobody attends to. Each call does a bounded amount of work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from .. import policy
from ..statements import leases as lease_stmt
from ..statements import maintenance as stmt
from ..values import TaskError
from . import runs
from .database import execute
from .leases import read_json

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
    is ready at once, or the task has failed. Tasks that somebody has locked are passed over.

    In a transaction of its own: what is locked is judged and written before anybody else may.
    """
    overdue = list(execute(session, lease_stmt.expired(model), {"limit": limit}))
    if not overdue:
        return []
    ended = [runs.Failed(row.id, row.token, _error(row), _verdict(row)) for row in overdue]
    written = runs.fail_many(session, model, ended)
    return [
        Expired(row.id, row.attempt, row.claimed_by, isinstance(run.verdict, policy.RetryAfter))
        for row, run in zip(overdue, ended, strict=True)
        if row.id in written
    ]


def _verdict(row: Any) -> policy.Verdict:
    retry = runs.retry_policy(read_json(row.retry, None))
    return policy.after_lease_expired(retry, attempt=row.attempt, max_attempts=row.max_attempts)


def _error(row: Any) -> TaskError:
    return TaskError(
        "LeaseExpired",
        f"worker {row.claimed_by} stopped extending its lease in attempt {row.attempt}; "
        f"it ran out at {row.lease_expires_at.isoformat()}",
    )
