"""Claims: taking tasks, keeping them, giving them back, and finding out that they were lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from ..errors import Cancelled, LeaseLost, Signal
from ..statements import leases as stmt
from ..statements.arrays import numbers, texts, uuids
from ..values import Claim, Json, TaskState
from .database import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
Held: TypeAlias = Mapping[UUID, int]  # the tokens of claims, by task

_decode = json.JSONDecoder().raw_decode
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
    parameters = {"names": texts(names), "worker": worker, "lease": lease, "limit": limit}
    rows = [tuple(row) for row in execute(session, stmt.claim(model), parameters).all()]
    rows.sort(key=_order)  # RETURNING has no order of its own
    queue = model.__queue__
    return [
        Claim(
            queue=queue,
            task_id=task_id,
            run_id=run_id,
            name=name,
            params=read_json(params, params),
            headers=None if headers is None else read_json(headers, None),
            attempt=attempt,
            max_attempts=max_attempts,
            retry=None if retry is None else _read_retry(retry),
            token=token,
            resumed=token > 1,
        )
        # Unpacked, not row.task_id and so on: this runs for every task.
        for task_id, run_id, name, params, headers, attempt, max_attempts, retry, token, *_ in rows
    ]


def _order(row: tuple[Any, ...]) -> tuple[int, datetime, bytes]:
    return row[-2], row[-1] or _LAST, row[0].bytes


def read_json(text: str | None, otherwise: Json) -> Json:
    """What PostgreSQL holds as JSON. `otherwise` where Python can't: an integer of 5000 digits, endless nesting."""
    if text is None:
        return None
    try:
        return _decode(text)[0]  # PostgreSQL's text has no space around it
    except (ValueError, RecursionError):
        return otherwise


@lru_cache(256)
def _read_retry(text: str) -> Json:
    return read_json(text, None)  # there are as many as there are handlers; nobody changes them


def extend(session: Session, model: Model, held: Held, *, lease: timedelta) -> set[UUID]:
    """Move the leases to `lease` from now. Returns those that are still held; the others were lost or have ended."""
    return set(execute(session, stmt.extend(model), {**by_id(held), "lease": lease}).scalars().all())


def release(session: Session, model: Model, held: Held) -> set[UUID]:
    """Give tasks back: ready at once, no attempt burnt. Returns those that were still held."""
    return set(execute(session, stmt.release(model), by_id(held)).scalars().all())


def by_id(held: Held) -> dict[str, str]:
    """The arrays of claims, in the order of ids: whoever writes several rows takes their locks in this order."""
    ids = sorted(held, key=attrgetter("bytes"))
    return {"ids": uuids(ids), "tokens": numbers(held[task_id] for task_id in ids)}


def standing(session: Session, model: Model, held: Held) -> dict[UUID, Signal | None]:
    """What became of claims whose writes found nothing: Cancelled, LeaseLost, or None for one that stands, or that
    had stored its result already (a reply that was lost on the way)."""
    rows = {row.id: row for row in execute(session, stmt.standing(model), {"ids": uuids(held)})}
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
