"""Claims: taking tasks, keeping them, giving them back, and finding out that they were lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from ..errors import Cancelled, InvalidOptions, LeaseLost, Signal
from ..statements import claims as stmt
from ..statements.arrays import durations, numbers, texts, uuids
from ..values import Claim, Json, TaskState
from .execute import execute
from .watermark import ClaimWatermark, ScanRange

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]
TokensByTask: TypeAlias = Mapping[UUID, int]  # the tokens of claims, by task

_decode = json.JSONDecoder().raw_decode
_NO_READY_TIME = timedelta(days=-1_000_000)  # became ready: a row without a time, which comes last


def claim(
    session: Session,
    model: Model,
    *,
    names: Sequence[str],
    worker: str,
    lease: timedelta,
    limit: int,
    watermark: ClaimWatermark | None = None,
) -> list[Claim]:
    """Take up to `limit` ready tasks called one of `names`, in their order: priority, due time, id.

    Tasks that others have locked are passed over, those of other names are unharmed, and a paused queue gives none.
    Params that are no readable JSON arrive as text, which no handler takes: that run fails, and only that one.
    With the `front` of earlier claims of these names, it begins behind what they have seen; but it returns nothing only
    after a look at everything, or while such looks are dear: the watermark says until when one is owed.
    """
    if not names or limit < 1:
        return []
    parameters = {"names": texts(names), "worker": worker, "lease": lease, "limit": limit}
    watermark = watermark or ClaimWatermark()
    rows = _claim_range(session, model, parameters, watermark, reach := watermark.reach())
    if not rows and reach is not None and watermark.due():
        rows = _claim_range(session, model, parameters, watermark, None)
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


def _claim_range(
    session: Session,
    model: Model,
    parameters: dict[str, Any],
    watermark: ClaimWatermark,
    reach: list[ScanRange] | None,
) -> list[tuple[Any, ...]]:
    sent, behind = watermark.now(), {} if reach is None else scan_arrays(reach)
    claimed = execute(session, stmt.claim(model, behind=bool(behind)), {**parameters, **behind})
    rows = [tuple(row) for row in claimed.all()]
    rows.sort(key=_claim_order)  # RETURNING has no order of its own
    found = [(row[-2], _waited(row)) for row in rows]
    watermark.claimed(sent, reach, limit=parameters["limit"], found=found)
    return rows


def scan_arrays(reach: Iterable[ScanRange]) -> dict[str, str]:
    """The arrays of what a claim looks at, if that isn't everything."""
    low, high, within = zip(*((part.low, part.high, part.within) for part in reach), strict=True)
    return {"lows": numbers(low), "highs": numbers(high), "withins": durations(within)}


def count_ready(session: Session, model: Model, *, names: Sequence[str] | None, limit: int) -> int:
    """How many tasks a worker could claim now, at most `limit`: see Durable.count_ready."""
    if type(limit) is not int or not 1 <= limit < 2**31:
        raise InvalidOptions(f"limit={limit!r} must be an integer from 1")
    if isinstance(names, str):
        raise InvalidOptions(f"names={names!r} must be a list of names")
    parameters = {"limit": limit} if names is None else {"limit": limit, "names": texts(names)}
    counted = execute(session, stmt.count_ready(model, named=names is not None), parameters, model=model)
    return int(counted.scalar_one())


def _claim_order(row: tuple[Any, ...]) -> tuple[int, timedelta, bytes]:
    return row[-2], -_waited(row), row[0].bytes


def _waited(row: tuple[Any, ...]) -> timedelta:
    waited: timedelta | None = row[-1]
    return _NO_READY_TIME if waited is None else waited


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


def extend(session: Session, model: Model, held: TokensByTask, *, lease: timedelta) -> set[UUID]:
    """Move the leases to `lease` from now. Returns those that are still held; the others were lost or have ended."""
    return set(execute(session, stmt.extend(model), {**arrays_by_id(held), "lease": lease}).scalars().all())


def release(session: Session, model: Model, held: TokensByTask) -> set[UUID]:
    """Give tasks back: ready at once, no attempt burnt. Returns those that were still held."""
    return set(execute(session, stmt.release(model), arrays_by_id(held)).scalars().all())


def arrays_by_id(held: TokensByTask) -> dict[str, str]:
    """The arrays of claims, in the order of ids: whoever writes several rows takes their locks in this order."""
    ids = sorted(held, key=attrgetter("bytes"))
    return {"ids": uuids(ids), "tokens": numbers(held[task_id] for task_id in ids)}


class ClaimStatus(StrEnum):
    """Why a write found nothing, although nobody took the task away."""

    HELD = "held"  # the claim is valid: its row was locked
    STORED = "stored"  # it had ended its task before: a reply was lost on the way


def claim_status(session: Session, model: Model, held: TokensByTask) -> dict[UUID, Signal | ClaimStatus]:
    """What became of claims whose writes found nothing: Cancelled, LeaseLost, or how they stand."""
    rows = {row.id: row for row in execute(session, stmt.statuses(model), {"ids": uuids(held)}, model=model)}
    return {task_id: _status_of(rows.get(task_id), task_id, token) for task_id, token in held.items()}


def _status_of(row: Any, task_id: UUID, token: int) -> Signal | ClaimStatus:
    if row is None:
        return LeaseLost(f"task {task_id} is gone: its row was deleted")
    if row.state == TaskState.CANCELLED:
        return Cancelled(f"task {task_id} was cancelled")
    if row.token == token and row.state == TaskState.RUNNING:
        return ClaimStatus.HELD
    if row.token == token and row.state == TaskState.COMPLETED:
        return ClaimStatus.STORED
    return LeaseLost(f"task {task_id} was taken away: its lease ran out, or another worker has it")


def check(session: Session, model: Model, task_id: UUID, token: int) -> None:
    """Raise the signal, Cancelled or LeaseLost, that ends a run whose claim no longer stands."""
    stands = claim_status(session, model, {task_id: token})[task_id]
    if isinstance(stands, Signal):
        raise stands


LOCK_TIMEOUT = timedelta(seconds=1)


def lock(session: Session, model: Model, claim: Claim) -> ClaimStatus:
    """How a claim stands, once no other transaction is writing for it; none can until this one ends. Raises the signal
    that ends its run, and PostgreSQL's error 55P03 if another one takes longer than LONGEST_WAIT."""
    parameters = {"ids": uuids([claim.task_id])}
    execute(session, stmt.set_lock_timeout(LOCK_TIMEOUT), model=model)
    row = execute(session, stmt.statuses(model, lock=True), parameters, model=model).first()
    stands = _status_of(row, claim.task_id, claim.token)
    if isinstance(stands, Signal):
        raise stands
    return stands
