"""Checkpoints: the saved values of steps."""

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
    """What is stored under a step's name. `first`: by this write, not by an earlier one."""

    value: Json
    first: bool


def load(session: Session, model: Model, task_ids: Iterable[UUID]) -> dict[UUID, dict[str, Json]]:
    """The checkpoints of tasks, by task and name."""
    saved: dict[UUID, dict[str, Json]] = {task_id: {} for task_id in task_ids}
    if saved:
        for row in execute(session, stmt.load(model), {"ids": uuids(saved)}):
            saved[row.task_id][row.name] = row.value
    return saved


def save(session: Session, model: Model, claim: Claim, name: str, value: str) -> Json:
    """Save a step's value (JSON text) and return what is stored under its name: what the run goes on with.

    An earlier value stays. Only the holder of the claim gets this far, so it is its own: the reply to an earlier try
    was lost. Raises Cancelled or LeaseLost, and then nothing was written.
    """
    return _save(session, model, claim, stmt.save(model), {"name": name, "value": value}).value


class AlreadySaved(Exception):
    """A step has happened before, in a transaction whose reply was lost: the caller rolls this one back, and goes on
    with `value`."""

    def __init__(self, value: Json) -> None:
        super().__init__()
        self.value = value


def save_first(session: Session, model: Model, claim: Claim, name: str, value: str) -> Json:
    """As `save`, with other writes in the same transaction, which must happen once. Raises AlreadySaved."""
    saved = _save(session, model, claim, stmt.save(model), {"name": name, "value": value})
    if not saved.first:
        raise AlreadySaved(saved.value)
    return saved.value


def find(session: Session, model: Model, task_id: UUID, name: str) -> Saved | None:
    """A checkpoint that is there; None if there is none."""
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
    """Save when a sleep ends that starts now, and return it in ISO format; an earlier one stays. Raises as `save`."""
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
        raise LeaseLost(f"task {claim.task_id} was taken away while step {values['name']!r} was saved")
    return earlier
