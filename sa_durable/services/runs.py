"""End runs: complete them, fail them with or without another attempt, or put them to sleep.

Every write names the token of its claim. Functions for one claim wait for locks, and raise Cancelled or
LeaseLost if the claim is no longer valid. Functions for many claims skip locked tasks, and return the tasks
that they reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy.orm import Session

from .. import policy
from ..codec import dumps, require_json
from ..errors import InvalidOptions
from ..ids import uuid7
from ..policy import GiveUp, RetryAfter, Verdict
from ..statements import runs as stmt
from ..statements.arrays import numbers, texts, uuids
from ..values import Claim, Json, RetryPolicy, TaskError, TaskState
from . import cancellation, checkpoints, claims
from .checkpoints import AlreadySaved
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


class Completed(NamedTuple):
    """A run that returned. A tuple, which is faster to make than a dataclass."""

    task_id: UUID
    token: int
    result: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that ended without a result."""

    task_id: UUID
    token: int
    error: TaskError
    verdict: Verdict
    """Whether the task is retried."""


def complete(session: Session, model: Model, claim: Claim, result: Json) -> None:
    """Store the result of a claim. Raises Cancelled or LeaseLost, and NotJson for what can't be stored."""
    require_json(result, "result")
    with suppress(AlreadySaved):  # the first result stays
        complete_first(session, model, claim, dumps(result, place="result"))


def complete_first(session: Session, model: Model, claim: Claim, result: str) -> None:
    """Store a result (JSON text) in a transaction with other writes, which must happen once.

    Raises AlreadySaved if an earlier transaction stored the result, and Cancelled or LeaseLost as `complete`.
    """
    if not _complete(session, model, [Completed(claim.task_id, claim.token, result)], wait=True).reached:
        claims.check(session, model, claim.task_id, claim.token)
        raise AlreadySaved(None)


@dataclass(frozen=True, slots=True)
class Stored:
    """The result of a write for many claims."""

    reached: frozenset[UUID]
    """The tasks whose claims were valid, and that were not locked."""
    announced: bool
    """Whether an internal event was written, because a task waits for one of them."""
    final: frozenset[UUID] = frozenset()
    """The tasks that have failed for good."""


def complete_many(session: Session, model: Model, ended: Sequence[Completed]) -> Stored:
    """Store many results in one statement. Skips locked tasks."""
    return _complete(session, model, ended, wait=False)


def _complete(session: Session, model: Model, ended: Sequence[Completed], *, wait: bool) -> Stored:
    ordered = sorted(ended, key=_id)
    parameters = {**_claims_of(ordered), "results": texts(run.result for run in ordered)}
    rows = execute(session, stmt.complete_many(model, wait=wait), parameters, model=model).all()
    return Stored(frozenset(row.id for row in rows), any(row.announced for row in rows))


def failed(claim: Claim, error: TaskError, *, retryable: bool = True) -> Failed:
    """Return the end of a failed claim; its retry policy decides whether the task is retried."""
    verdict = policy.after_failure(
        retry_policy(claim.retry), attempt=claim.attempt, max_attempts=claim.max_attempts, retryable=retryable
    )
    return Failed(claim.task_id, claim.token, error, verdict)


def fail(
    session: Session, model: Model, claim: Claim, error: TaskError, *, retryable: bool = True
) -> Verdict:
    """End a claim without a result, and add it to the history: the task is retried, or has failed.

    Raises Cancelled or LeaseLost.
    """
    ended = failed(claim, error, retryable=retryable)
    if not fail_root(session, model, ended).reached:
        claims.check(session, model, claim.task_id, claim.token)
    return ended.verdict


def fail_root(session: Session, model: Model, ended: Failed) -> Stored:
    """End one claim without a result. If the task has failed for good, cancel its descendants.

    Needs a transaction of its own, because it locks the descendants from root to leaf, and waits for locks.
    """
    stored = _fail(session, model, [ended], wait=True)
    for task_id in stored.final:
        cancellation.cancel_descendants(session, model, task_id)
    return stored


def fail_many(session: Session, model: Model, ended: Iterable[Failed]) -> Stored:
    """End many claims without a result, in one statement. Skips locked tasks.

    Doesn't cancel descendants: use `fail_root` for a task that has children and may fail for good.
    """
    return _fail(session, model, ended, wait=False)


def _fail(session: Session, model: Model, ended: Iterable[Failed], *, wait: bool) -> Stored:
    ordered = sorted(ended, key=_id)
    parameters = {
        **_claims_of(ordered),
        "errors": texts(dumps(run.error.to_json(), place="error") for run in ordered),
        "delays": numbers(_seconds(run.verdict) for run in ordered),
        "next_runs": uuids(uuid7() for _ in ordered),
    }
    rows = execute(session, stmt.fail_many(model, wait=wait), parameters, model=model).all()
    return Stored(
        frozenset(row.id for row in rows),
        any(row.announced for row in rows),
        frozenset(row.id for row in rows if TaskState(row.state).terminal),
    )


def _claims_of(ordered: Sequence[Completed | Failed]) -> dict[str, Any]:
    return {
        "ids": uuids(run.task_id for run in ordered),
        "tokens": numbers(run.token for run in ordered),
    }


def _id(run: Completed | Failed) -> bytes:
    return run.task_id.bytes  # compares as PostgreSQL does, faster than UUID objects


def _seconds(verdict: Verdict) -> float | None:
    match verdict:
        case RetryAfter(delay):
            return min(delay, policy.MAX_SPAN).total_seconds()
        case GiveUp():
            return None


def retry_policy(stored: Json) -> RetryPolicy:
    """Return the stored retry policy.

    Returns the default one for a policy that this version can't read, because a run must be able to end.
    """
    try:
        policy.check_retry(read := policy.retry_from_json(stored))
    except (InvalidOptions, TypeError, ValueError, OverflowError, AttributeError):
        return policy.retry_from_json(None)
    return read


def sleep(
    session: Session,
    model: Model,
    claim: Claim,
    name: str,
    *,
    delay: timedelta | None = None,
    until: datetime | None = None,
) -> bool:
    """Put a run to sleep, and save its wake-up time as checkpoint `name`. The same attempt goes on then.

    A checkpoint that exists already keeps its time. Both writes belong into one transaction.

    Args:
        session: A session of the worker.
        model: The queue.
        claim: The claim of the run.
        name: The name of the checkpoint.
        delay: How long to sleep, by the database's clock; or
        until: when to wake up.

    Returns:
        Whether the run sleeps. False: the time has passed already, the run goes on now.

    Raises:
        Cancelled, LeaseLost: The claim is no longer valid.
    """
    wake = checkpoints.save_wake_time(session, model, claim, name, delay=delay, until=until)
    parameters = {"task_id": claim.task_id, "held_token": claim.token, "wake": datetime.fromisoformat(wake)}
    if execute(session, stmt.sleep(model), parameters).first() is not None:
        return True
    claims.check(session, model, claim.task_id, claim.token)
    return False
