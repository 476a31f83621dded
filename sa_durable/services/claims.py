"""Claims: take tasks, extend their leases, release them, and find out whether they are still held."""

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
TokensByTask: TypeAlias = Mapping[UUID, int]
"""The tokens of claims, by task."""

_decode = json.JSONDecoder().raw_decode
_NO_READY_TIME = timedelta(days=-1_000_000)  # how long a row without a time has been ready: it sorts last


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
    """Claim ready tasks, in the order of priority, due time and id.

    Skips tasks that another transaction has locked. A paused queue gives none. Params that Python can't read
    as JSON arrive as text, which no handler accepts: only that run fails.

    With a watermark, the claim reads only the tasks behind it. Every two seconds it reads the whole index,
    and so it does if it finds nothing while the queue is idle.

    Args:
        session: A session of the worker.
        model: The queue.
        names: The names of tasks to claim.
        worker: The worker's id.
        lease: How long the claims are valid, unless they are extended.
        limit: The largest number of tasks to claim.
        watermark: Where earlier claims of these names have read to. None: read the whole index.
    """
    if not names or limit < 1:
        return []
    parameters = {"names": texts(names), "worker": worker, "lease": lease, "limit": limit}
    watermark = watermark or ClaimWatermark()
    ranges = watermark.scan_ranges()
    rows = _claim_range(session, model, parameters, watermark, ranges)
    if not rows and ranges is not None and watermark.idle:
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
        # Unpacked instead of row.task_id etc., for speed: this runs for every task.
        for task_id, run_id, name, params, headers, attempt, max_attempts, retry, token, *_ in rows
    ]


def _claim_range(
    session: Session,
    model: Model,
    parameters: dict[str, Any],
    watermark: ClaimWatermark,
    ranges: list[ScanRange] | None,
) -> list[tuple[Any, ...]]:
    sent, behind = watermark.now(), {} if ranges is None else scan_arrays(ranges)
    claimed = execute(session, stmt.claim(model, behind=bool(behind)), {**parameters, **behind})
    rows = [tuple(row) for row in claimed.all()]
    rows.sort(key=_claim_order)  # RETURNING doesn't keep the order
    found = [(row[-2], _waited(row)) for row in rows]
    watermark.record_claim(sent, ranges, limit=parameters["limit"], found=found)
    return rows


def scan_arrays(ranges: Iterable[ScanRange]) -> dict[str, str]:
    """Return the parameters of a claim that reads only some ranges of the index."""
    low, high, within = zip(*((part.low, part.high, part.within) for part in ranges), strict=True)
    return {"lows": numbers(low), "highs": numbers(high), "withins": durations(within)}


def count_ready(session: Session, model: Model, *, names: Sequence[str] | None, limit: int) -> int:
    """Count the tasks that a worker could claim now: see Durable.count_ready."""
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
    """Read JSON text from PostgreSQL.

    Returns `otherwise` for text that Python can't read: an integer of 5000 digits, or too many nested lists.
    """
    if text is None:
        return None
    try:
        return _decode(text)[0]  # no white space to skip: PostgreSQL's text has none around it
    except (ValueError, RecursionError):
        return otherwise


@lru_cache(256)
def _read_retry(text: str) -> Json:
    return read_json(
        text, None
    )  # cached: there are as many texts as handlers, and the values are not changed


def extend(session: Session, model: Model, held: TokensByTask, *, lease: timedelta) -> set[UUID]:
    """Extend leases to `lease` from now.

    Returns:
        The tasks that are still held. The other claims were lost, or their tasks have ended.
    """
    return set(execute(session, stmt.extend(model), {**arrays_by_id(held), "lease": lease}).scalars().all())


def release(session: Session, model: Model, held: TokensByTask) -> set[UUID]:
    """Release tasks: ready at once, without consuming an attempt. Returns the tasks that were still held."""
    return set(execute(session, stmt.release(model), arrays_by_id(held)).scalars().all())


def arrays_by_id(held: TokensByTask) -> dict[str, str]:
    """Return the arrays of claims, in the order of ids: all statements lock rows in this order."""
    ids = sorted(held, key=attrgetter("bytes"))
    return {"ids": uuids(ids), "tokens": numbers(held[task_id] for task_id in ids)}


class ClaimStatus(StrEnum):
    """The state of a claim that is still valid, or has done its work."""

    HELD = "held"
    """The claim is valid. A write that didn't reach it has skipped a locked row."""
    STORED = "stored"
    """The claim has completed its task: the reply to an earlier write was lost."""


def claim_status(session: Session, model: Model, held: TokensByTask) -> dict[UUID, Signal | ClaimStatus]:
    """Return the status of claims; for a claim that was lost, the signal Cancelled or LeaseLost."""
    rows = {row.id: row for row in execute(session, stmt.statuses(model), {"ids": uuids(held)}, model=model)}
    return {task_id: _status_of(rows.get(task_id), task_id, token) for task_id, token in held.items()}


def _status_of(row: Any, task_id: UUID, token: int) -> Signal | ClaimStatus:
    if row is None:
        return LeaseLost(f"task {task_id} was deleted")
    if row.state == TaskState.CANCELLED:
        return Cancelled(f"task {task_id} was cancelled")
    if row.token == token and row.state == TaskState.RUNNING:
        return ClaimStatus.HELD
    if row.token == token and row.state == TaskState.COMPLETED:
        return ClaimStatus.STORED
    return LeaseLost(f"claim of task {task_id} lost: its lease expired, or another worker has claimed it")


def check(session: Session, model: Model, task_id: UUID, token: int) -> None:
    """Raise the signal that ends a run, Cancelled or LeaseLost, if its claim is no longer valid."""
    status = claim_status(session, model, {task_id: token})[task_id]
    if isinstance(status, Signal):
        raise status


LOCK_TIMEOUT = timedelta(seconds=1)


def lock(session: Session, model: Model, claim: Claim) -> ClaimStatus:
    """Lock the row of a claim until the end of this transaction, and return the claim's status.

    Raises the signal that ends the run if the claim was lost. Raises PostgreSQL's error 55P03 if another
    transaction keeps the lock for longer than LOCK_TIMEOUT.
    """
    parameters = {"ids": uuids([claim.task_id])}
    execute(session, stmt.set_lock_timeout(LOCK_TIMEOUT), model=model)
    row = execute(session, stmt.statuses(model, lock=True), parameters, model=model).first()
    status = _status_of(row, claim.task_id, claim.token)
    if isinstance(status, Signal):
        raise status
    return status
