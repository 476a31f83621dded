"""Claims: taking tasks, keeping them, giving them back, and finding out that they were lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from ..errors import Cancelled, LeaseLost, Signal
from ..statements import leases as stmt
from ..values import Claim, Json, TaskState
from .database import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
Held: TypeAlias = Mapping[UUID, int]  # the tokens of claims, by task

_LAST = datetime.max.replace(tzinfo=UTC)


def claim(
    session: Session, model: Model, *, names: Sequence[str], worker: str, lease: timedelta, limit: int
) -> list[Claim]:
    """Take up to `limit` ready tasks called one of `names`, in their order: priority, due time, id.

    Tasks that others have locked are passed over, those of other names are unharmed, and a paused queue gives none.
    Params that are no readable JSON arrive as text, which no handler takes: that run fails, and only that one.
    """
    if not names or limit < 1:
        return []
    parameters = {"names": list(names), "worker": worker, "lease": lease, "limit": limit}
    rows = list(execute(session, stmt.claim(model), parameters))
    rows.sort(key=_order)  # RETURNING has no order of its own
    return [
        Claim(
            queue=model.__queue__,
            task_id=row.id,
            run_id=row.run_id,
            name=row.name,
            params=read_json(row.params, row.params),
            headers=read_json(row.headers, None),
            attempt=row.attempt,
            max_attempts=row.max_attempts,
            retry=read_json(row.retry, None),
            token=row.token,
            resumed=row.token > 1,
        )
        for row in rows
    ]


def _order(row: Any) -> tuple[int, datetime, UUID]:
    return row.priority, row.available_at or _LAST, row.id


def read_json(text: str | None, otherwise: Json) -> Json:
    """What PostgreSQL holds as JSON. `otherwise` where Python can't: an integer of 5000 digits, endless nesting."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def extend(session: Session, model: Model, held: Held, *, lease: timedelta) -> set[UUID]:
    """Move the leases to `lease` from now. Returns those that are still held; the others were lost or have ended."""
    return set(execute(session, stmt.extend(model), {**by_id(held), "lease": lease}).scalars())


def release(session: Session, model: Model, held: Held) -> set[UUID]:
    """Give tasks back: ready at once, no attempt burnt. Returns those that were still held."""
    return set(execute(session, stmt.release(model), by_id(held)).scalars())


def by_id(held: Held) -> dict[str, list[Any]]:
    """The arrays of claims, in the order of ids: whoever writes several rows takes their locks in this order."""
    ids = sorted(held)
    return {"ids": ids, "tokens": [held[task_id] for task_id in ids]}


def standing(session: Session, model: Model, held: Held) -> dict[UUID, Signal | None]:
    """What became of claims whose writes found nothing: Cancelled, LeaseLost, or None for one that stands, or that
    had stored its result already (a reply that was lost on the way)."""
    rows = {row.id: row for row in execute(session, stmt.standing(model), {"ids": list(held)})}
    return {task_id: _signal(rows.get(task_id), task_id, token) for task_id, token in held.items()}


def _signal(row: Any, task_id: UUID, token: int) -> Signal | None:
    if row is None:
        return LeaseLost(f"task {task_id} is gone: its row was deleted")
    if row.state == TaskState.CANCELLED:
        return Cancelled(f"task {task_id} was cancelled")
    if row.token == token and row.state in (TaskState.RUNNING, TaskState.COMPLETED):
        return None
    return LeaseLost(f"task {task_id} was taken away: its lease ran out, or another worker has it")


def check(session: Session, model: Model, task_id: UUID, token: int) -> None:
    """Raise the signal, Cancelled or LeaseLost, that ends a run whose claim no longer stands."""
    if signal := standing(session, model, {task_id: token})[task_id]:
        raise signal


def unaccounted(held: Held, done: Iterable[UUID]) -> dict[UUID, int]:
    """The claims that a write didn't reach."""
    reached = set(done)
    return {task_id: token for task_id, token in held.items() if task_id not in reached}
