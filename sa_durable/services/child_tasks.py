"""Spawn the children of a run: the new tasks and the checkpoint that names them are one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from ..codec import dumps
from ..errors import LeaseLost, RetryTransaction, Signal
from ..handlers import Call
from ..models import queue_of
from ..statements import waits as stmt
from ..values import Claim, Json, OnDuplicate, SpawnKeywords, SpawnResult, TaskState
from . import checkpoints, claims, spawn_many
from .claims import ClaimStatus
from .execute import execute
from .prepare import prepare
from .spawn import insert_or_get

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def spawn(
    session: Session,
    model: Model,
    claim: Claim,
    step: str,
    calls: Sequence[Call[Any, Any]],
    *,
    keywords: SpawnKeywords,
) -> Json:
    """Spawn the children of a run and save them as the checkpoint `step`, in one transaction.

    Returns:
        The checkpoint. `from_checkpoint` makes the results from it.

    Raises:
        AlreadySaved: An earlier transaction stored the step.
        Cancelled, LeaseLost: The claim is no longer valid.
        RetryTransaction: Another transaction has locked the parent, and waiting for it could be a deadlock.
    """
    spawned = spawn_in(session, model, claim, calls, keywords)
    # The parent is written last: a transaction that cancels the parent either waits for this one or is seen
    # here, so it doesn't miss the children. If a call may have locked the holder of a key, this write doesn't
    # wait: the holder may be a relative, and a cascade that has locked the parent waits for the holder.
    wait = not any(_changes_holder(call, keywords) for call in calls)
    parameters = {"task_id": claim.task_id, "held_token": claim.token}
    if execute(session, stmt.touch(model, wait=wait), parameters).first() is None:
        status = claims.claim_status(session, model, {claim.task_id: claim.token})[claim.task_id]
        if isinstance(status, Signal):
            raise status
        if wait or status is not ClaimStatus.HELD:
            raise LeaseLost(
                f"task {claim.task_id} was claimed by another worker while step {step!r} was saved"
            )
        raise RetryTransaction(
            f"could not save step {step!r}: another transaction is changing task {claim.task_id}, which "
            "changes the holder of a key. Nothing was written. Roll back and retry the transaction."
        )
    text = dumps([_described(child) for child in spawned], place=f"step {step!r}", limit=NO_LIMIT)
    return checkpoints.save_first(session, model, claim, step, text)


def spawn_in(
    session: Session, model: Model, claim: Claim, calls: Sequence[Call[Any, Any]], keywords: SpawnKeywords
) -> list[SpawnResult[Any]]:
    """Spawn children of a run in the caller's transaction, without a checkpoint."""
    parent = (model.__queue__, claim.task_id)
    if len(calls) == 1:
        return [insert_or_get(session, prepare(calls[0], keywords, parent))]
    return list(spawn_many.spawn_many(session, calls, keywords, parent))


def _changes_holder(call: Call[Any, Any], keywords: SpawnKeywords) -> bool:
    """Return whether spawning the call may write a task that exists already."""
    layers = (keywords, call.options, call.defaults, queue_of(call.model).__spawn_defaults__ or {})
    chosen = next((layer["on_duplicate"] for layer in layers if "on_duplicate" in layer), None)
    return chosen in (OnDuplicate.UPDATE, OnDuplicate.REPLACE)


NO_LIMIT = 2**30  # bytes, for values that the library itself writes


def _described(child: SpawnResult[Any]) -> dict[str, Json]:
    return {
        "task_id": str(child.task_id),
        "run_id": str(child.run_id),
        "attempt": child.attempt,
        "created": child.created,
        "state": child.state.value,
        "params_match": child.params_match,
    }


def from_checkpoint(
    calls: Sequence[Call[Any, Any]], saved: Sequence[Mapping[str, Json]]
) -> list[SpawnResult[Any]]:
    """Return the children that a checkpoint names, as they were when they were spawned."""
    return [
        SpawnResult(
            UUID(child["task_id"]),
            UUID(child["run_id"]),
            child["attempt"],
            child["created"],
            TaskState(child["state"]),
            child["params_match"],
            queue_of(call.model),
        )
        for call, child in zip(calls, saved, strict=True)
    ]
