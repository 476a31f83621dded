"""Checkpoints: load and save the values of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import Executable
from sqlalchemy.orm import Session

from ..errors import LeaseLost
from ..statements import checkpoints as stmt
from ..statements.arrays import uuids
from ..values import Claim, Json
from . import claims
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


@dataclass(frozen=True, slots=True)
class Saved:
    """The value that is stored under a step's name."""

    value: Json
    first: bool
    """Whether this write stored the value. False: an earlier write did."""


def load(session: Session, model: Model, task_ids: Iterable[UUID]) -> dict[UUID, dict[str, Json]]:
    """Return the checkpoints of tasks, by task and step name."""
    saved: dict[UUID, dict[str, Json]] = {task_id: {} for task_id in task_ids}
    if saved:
        for row in execute(session, stmt.load(model), {"ids": uuids(saved)}):
            saved[row.task_id][row.name] = row.value
    return saved


def save(session: Session, model: Model, claim: Claim, name: str, value: str) -> Json:
    """Save a step's value (JSON text). Returns the value that is stored, with which the run goes on.

    An earlier value stays: only the holder of the claim can have written it, in a transaction whose reply was
    lost. Raises Cancelled or LeaseLost; then nothing was written.
    """
    return _save(session, model, claim, stmt.save(model), {"name": name, "value": value}).value


class AlreadySaved(Exception):
    """The step is stored already, by a transaction whose reply was lost.

    The caller rolls its own transaction back, and goes on with `value`.
    """

    def __init__(self, value: Json) -> None:
        super().__init__()
        self.value = value


def save_first(session: Session, model: Model, claim: Claim, name: str, value: str) -> Json:
    """Save a step's value as `save` does, in a transaction with other writes, which must happen once.

    Raises AlreadySaved if an earlier transaction stored the step.
    """
    saved = _save(session, model, claim, stmt.save(model), {"name": name, "value": value})
    if not saved.first:
        raise AlreadySaved(saved.value)
    return saved.value


def find(session: Session, model: Model, task_id: UUID, name: str) -> Saved | None:
    """Return the checkpoint of a step; None if there is none."""
    row = execute(session, stmt.find(model), {"id": task_id, "name": name}, model=model).first()
    return None if row is None else Saved(row.value, first=False)


def save_wake_time(
    session: Session,
    model: Model,
    claim: Claim,
    name: str,
    *,
    delay: timedelta | None = None,
    until: datetime | None = None,
) -> str:
    """Save when a sleep that starts now will end, and return the time in ISO format. An earlier time stays.

    Raises Cancelled or LeaseLost, as `save`.
    """
    values = {"name": name, "delay": delay, "until": until}
    wake: str = _save(session, model, claim, stmt.save_wake_time(model), values).value
    return wake


def _save(
    session: Session, model: Model, claim: Claim, statement: Executable, values: Mapping[str, Any]
) -> Saved:
    parameters = {"id": claim.task_id, "token": claim.token, **values}
    row = execute(session, statement, parameters, model=model).first()
    if row is not None:
        return Saved(row.value, first=True)
    claims.check(session, model, claim.task_id, claim.token)
    earlier = find(session, model, claim.task_id, values["name"])
    if earlier is None:
        raise LeaseLost(
            f"task {claim.task_id} was claimed by another worker while step {values['name']!r} was saved"
        )
    return earlier
