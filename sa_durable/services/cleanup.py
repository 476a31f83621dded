"""Clean-up: delete tasks and events that ended long ago."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table
from sqlalchemy.orm import Session

from .. import policy
from ..errors import InvalidOptions
from ..models import queues_beside
from ..statements import cleanup as stmt
from ..values import CleanedUp
from .execute import execute

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def clean_up(session: Session, model: Model, *, older_than: timedelta, limit: int) -> CleanedUp:
    """Delete up to `limit` ended tasks and as many settled events: see Durable.clean_up."""
    policy.check_duration("older_than", older_than, zero=True)
    if type(limit) is not int or not 1 <= limit < 2**31:
        raise InvalidOptions(f"limit={limit!r} must be an integer from 1")
    beside = tuple(queues_beside(model))
    parameters = {"older_than": older_than, "limit": limit}
    # A foreign key that the metadata doesn't know may refuse: that undoes the clean-up, and nothing of the
    # caller's.
    with session.begin_nested():
        tasks = execute(session, stmt.delete_finished(model, beside), parameters, model=model).all()
        events = execute(session, stmt.delete_settled(model, beside), parameters, model=model).all()
    return CleanedUp(len(tasks), len(events))


def retentions(session: Session, models: Iterable[Model]) -> dict[Model, timedelta]:
    """Return the retention of each queue that has one. Takes one statement for all queues of a Base."""
    by_table: dict[Any, dict[str, Model]] = {}
    for model in models:
        by_table.setdefault(model.Queue, {})[model.__queue__] = model
    return {
        named[row.name]: row.retention
        for queues, named in by_table.items()
        for row in execute(session, stmt.retentions(cast(Table, queues.__table__)), model=queues)
        if row.name in named
    }
