"""Poll a worker's queues: one statement says what there is to do in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from ..statements import polling as stmt
from ..statements.arrays import texts
from ..statements.tables import Model
from .execute import execute


@dataclass(frozen=True, slots=True)
class Due:
    """What there is to claim and to wake in a queue."""

    ready: bool
    """Whether a task with one of the given names could be claimed."""
    next_due: timedelta | None
    """Time until the first sleeping task is due: zero or less if it is due now. None: no task sleeps."""
    unsettled: bool
    """Whether there are events to settle."""
    settled: bool
    """Whether there are waits whose events are settled."""
    waiting: bool
    """Whether there are waits whose events are not settled."""


def due(session: Session, names: Mapping[Model, Sequence[str]]) -> dict[Model, Due]:
    """Return what there is to claim and to wake.

    Args:
        session: A session of the worker.
        names: The names of tasks that the worker can claim, by queue.
    """
    models = tuple(names)
    parameters = {stmt.names_of(number): texts(names[model]) for number, model in enumerate(models)}
    rows = execute(session, stmt.due(models), parameters)
    return {
        models[row.number]: Due(row.ready, row.next_due, row.unsettled, row.settled, row.waiting)
        for row in rows
    }


@dataclass(frozen=True, slots=True)
class Ended:
    """Which leases and deadlines of a queue have passed."""

    expired: bool
    """Whether a lease has expired."""
    next_overdue: timedelta | None
    """Time until the first deadline: zero or less if it has passed. None: no task has one."""


def ended(session: Session, models: Sequence[Model]) -> dict[Model, Ended]:
    """Return whether leases or deadlines of the queues have passed."""
    rows = execute(session, stmt.expired(tuple(models)))
    return {models[row.number]: Ended(row.expired, row.next_overdue) for row in rows}
