"""What there is to do in a worker's queues, asked in one statement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from ..statements import polling as stmt
from ..statements.arrays import texts
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to claim and to wake in a queue."""

    ready: bool  # a task of a name that was asked for could be claimed
    next_due: timedelta | None  # until the first sleeper is due; zero or less: it is. None: there is none
    unsettled: bool  # there are events to settle
    settled: bool  # there are waits whose events are settled
    waiting: bool  # there are others


def due(session: Session, names: Mapping[Model, Sequence[str]]) -> dict[Model, Due]:
    """What is to be done in the queues of `names`, which gives for each the names that can be claimed."""
    models = tuple(names)
    parameters = {stmt.names_of(number): texts(names[model]) for number, model in enumerate(models)}
    rows = execute(session, stmt.due(models), parameters)
    return {
        models[row.number]: Due(row.ready, row.next_due, row.unsettled, row.settled, row.waiting)
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Ended:
    """Whose time is over in a queue."""

    expired: bool  # a lease is
    next_overdue: timedelta | None  # until the first task has to be cancelled; as Due.next_due


def ended(session: Session, models: Sequence[Model]) -> dict[Model, Ended]:
    """Whose time is over in the queues `models`."""
    rows = execute(session, stmt.expired(tuple(models)))
    return {models[row.number]: Ended(row.expired, row.next_overdue) for row in rows}
