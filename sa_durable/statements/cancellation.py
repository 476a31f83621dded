"""Cancelling tasks. Callers lock first, root to leaf and each generation in the order of ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Select, Table, Update, literal_column, select, text, update
from sqlalchemy.dialects.postgresql import Insert, insert

from ..models.predicates import ACTIVE
from . import clock
from .tasks import table_of

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


def lock_active(model: Model, ids: list[Any]) -> Select[Any]:
    """Lock those of `ids` that aren't terminal, in the order of ids, as every statement that locks several does."""
    return select(model.id).where(model.id.in_(ids), text(ACTIVE)).order_by(model.id).with_for_update()


def children(model: Model, queue: str, ids: list[Any]) -> Select[Any]:
    """The children of `queue`'s tasks `ids` that aren't terminal."""
    return (
        select(model.id)
        .where(model.parent_id.in_(ids), model.parent_queue == queue, text(ACTIVE))
        .order_by(model.id)
    )


def cancel(model: Model, ids: list[Any]) -> Update:
    """Cancel locked tasks. The token is raised: whatever a worker still writes for them is rejected."""
    return (
        update(model)
        .where(model.id.in_(ids), text(ACTIVE))
        .values(
            state="cancelled",
            token=model.token + 1,
            finished_at=clock.now(),
            available_at=None,
            lease_expires_at=None,
        )
        .returning(model.id)
    )


def insert_cancelled_runs(model: Model, ids: list[Any]) -> Insert:
    """History of the current attempts of tasks `ids`, which are about to be cancelled."""
    tasks, runs = table_of(model), cast(Table, model.Run.__table__)  # type: ignore[attr-defined]  # mapped imperatively
    current = select(
        tasks.c.run_id,
        tasks.c.id,
        tasks.c.attempt,
        literal_column("'cancelled'"),
        tasks.c.claimed_by,
        tasks.c.started_at,
        tasks.c.lease_expires_at,
    ).where(tasks.c.id.in_(ids), text(ACTIVE), tasks.c.started_at.is_not(None))
    names = ["id", "task_id", "attempt", "state", "worker", "started_at", "lease_expires_at"]
    return insert(runs).from_select(names, current)
