"""How a run ends: completed, failed with another attempt or none, or asleep.

Whatever a worker writes names the token of its claim. The functions for one claim raise Cancelled or LeaseLost when
it no longer stands, and wait for locks; those for many return what they reached, and never wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
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


class Completed(NamedTuple):  # as values.Claim
    """A run that returned; `result` is JSON text (codec.dumps)."""

    task_id: UUID
    token: int
    result: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that ended without a result, and what follows."""

    task_id: UUID
    token: int
    error: TaskError
    verdict: Verdict


def complete(session: Session, model: Model, claim: Claim, result: Json) -> None:
    """Store the result of a claim. Raises Cancelled or LeaseLost, and NotJson for what can't be stored."""
    require_json(result, "result")
    with suppress(AlreadySaved):  # the first result stays
        complete_first(session, model, claim, dumps(result, place="result"))


def complete_first(session: Session, model: Model, claim: Claim, result: str) -> None:
    """As `complete`, with JSON text, and with other writes in the same transaction, which must happen once. Raises
    AlreadySaved."""
    if not _complete(session, model, [Completed(claim.task_id, claim.token, result)], wait=True).reached:
        claims.check(session, model, claim.task_id, claim.token)
        raise AlreadySaved(None)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a write for many claims came to."""

    reached: frozenset[UUID]  # the tasks whose claims still stood and weren't locked
    announced: bool  # an internal event was written, for whoever waits for one of them
    final: frozenset[UUID] = frozenset()  # those that ended without a result


def complete_many(session: Session, model: Model, ended: Sequence[Completed]) -> Stored:
    """Store many results in one statement. Locked tasks are passed over."""
    return _complete(session, model, ended, wait=False)


def _complete(session: Session, model: Model, ended: Sequence[Completed], *, wait: bool) -> Stored:
    ordered = sorted(ended, key=_id)
    parameters = {
        "ids": uuids(run.task_id for run in ordered),
        "tokens": numbers(run.token for run in ordered),
        "results": texts(run.result for run in ordered),
    }
    rows = execute(session, stmt.complete_many(model, wait=wait), parameters, model=model).all()
    return Stored(frozenset(row.id for row in rows), any(row.announced for row in rows))


def failed(claim: Claim, error: TaskError, *, retryable: bool = True) -> Failed:
    """The end of a claim that failed: its retry policy decides what follows."""
    verdict = policy.after_failure(
        retry_policy(claim.retry), attempt=claim.attempt, max_attempts=claim.max_attempts, retryable=retryable
    )
    return Failed(claim.task_id, claim.token, error, verdict)


def fail(
    session: Session, model: Model, claim: Claim, error: TaskError, *, retryable: bool = True
) -> Verdict:
    """End a claim without a result, with history: another attempt, or the task has failed. Raises Cancelled or
    LeaseLost."""
    ended = failed(claim, error, retryable=retryable)
    if not fail_root(session, model, ended).reached:
        claims.check(session, model, claim.task_id, claim.token)
    return ended.verdict


def fail_root(session: Session, model: Model, ended: Failed) -> Stored:
    """End one claim without a result, and cancel what descends from a task that has failed so. Waits for locks, root
    to leaf: alone in its transaction."""
    stored = _fail(session, model, [ended], wait=True)
    for task_id in stored.final:
        cancellation.cancel_descendants(session, model, task_id)
    return stored


def fail_many(session: Session, model: Model, ended: Iterable[Failed]) -> Stored:
    """End many claims without a result, in one statement. Locked tasks are passed over.

    Descendants are left to the caller, in the same transaction: a `final` one that has children is ended with
    fail_root instead.
    """
    return _fail(session, model, ended, wait=False)


def _fail(session: Session, model: Model, ended: Iterable[Failed], *, wait: bool) -> Stored:
    ordered = sorted(ended, key=_id)
    parameters = {
        "ids": uuids(run.task_id for run in ordered),
        "tokens": numbers(run.token for run in ordered),
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


def _id(run: Completed | Failed) -> bytes:
    return run.task_id.bytes  # compares as PostgreSQL does, and faster than UUID's own


def _seconds(verdict: Verdict) -> float | None:
    match verdict:
        case RetryAfter(delay):
            return min(delay, policy.MAX_SPAN).total_seconds()
        case GiveUp():
            return None


def retry_policy(stored: Json) -> RetryPolicy:
    """The stored policy; the default one for what this version can't read, since a run must be able to end."""
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
    """Put a claim to sleep, remembering as checkpoint `name` until when by the database's clock; the same run and
    attempt go on then. False: the time has passed, go on now.

    A sleep that is remembered already keeps its time. Checkpoint and state change together if the caller's
    transaction is one. Raises Cancelled or LeaseLost.
    """
    wake = checkpoints.save_wake_time(session, model, claim, name, delay=delay, until=until)
    parameters = {"task_id": claim.task_id, "held_token": claim.token, "wake": datetime.fromisoformat(wake)}
    if execute(session, stmt.sleep(model), parameters).first() is not None:
        return True
    claims.check(session, model, claim.task_id, claim.token)
    return False
