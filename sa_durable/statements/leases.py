"""Claims and leases: who may run a task, until when, and how it is taken away.

Every statement that acts for a worker names the token of its claim and asks for state 'running'. Arrays travel in
the order of ids, so that two workers who write several rows take their locks in one order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Select,
    Table,
    TableValuedAlias,
    Text,
    TextClause,
    Uuid,
    any_,
    bindparam,
    column,
    func,
    literal,
    select,
    text,
    true,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.dml import ReturningUpdate

from ..models.predicates import PENDING, RUNNING
from . import clock
from .arrays import array
from .memo import memo
from .tasks import table_of

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]


@memo
def claim(model: Model) -> ReturningUpdate[Any]:
    """Give up to `limit` ready tasks called one of `names` to `worker` for the time of `lease`. Nothing while the
    queue is paused.

    The ready index is walked once per name, so rows of other names cost nothing, wherever they stand. Locked rows
    are passed over. `= ANY (ARRAY(...))` and no join: the planner always answers it by primary key, also right
    after a bulk insert, before anybody has analysed the table, and in a generic plan (measured at 150k rows).
    JSON comes as text: one row that can't be read must not cost the batch.
    """
    table = table_of(model)
    ready = table.alias("ready")
    known = (
        func.unnest(array("names", Text())).table_valued(column("name", Text())).render_derived(name="known")
    )
    limit = bindparam("limit", type_=Integer())
    order = ("priority", "available_at", "id")
    candidate = (
        select(*(ready.c[c] for c in order))
        .where(text(f"ready.{PENDING}"), ready.c.name == known.c.name)
        .order_by(*(ready.c[c] for c in order))
        .limit(limit)
        .with_for_update(skip_locked=True, of=ready)
        .lateral("candidate")
    )
    first = (
        select(candidate.c.id)
        .select_from(known)
        .join(candidate, true())
        .where(~_paused(model))
        .order_by(*(candidate.c[c] for c in order))
        .limit(limit)
    )
    return (
        update(table)
        .where(table.c.id == any_(func.array(first.scalar_subquery())))
        .values(
            state="running",
            token=table.c.token + 1,
            claimed_by=bindparam("worker", type_=Text()),
            lease_expires_at=clock.now() + bindparam("lease", type_=Interval()),
            started_at=clock.now(),
            first_started_at=func.coalesce(table.c.first_started_at, clock.now()),
        )
        .returning(
            table.c.id,
            table.c.run_id,
            table.c.name,
            sql_cast(table.c.params, Text()).label("params"),
            sql_cast(table.c.headers, Text()).label("headers"),
            table.c.attempt,
            table.c.max_attempts,
            sql_cast(table.c.retry, Text()).label("retry"),
            table.c.token,
            table.c.priority,
            table.c.available_at,
        )
    )


def _paused(model: Model) -> ColumnElement[bool]:
    queues = model.Queue.__table__  # type: ignore[attr-defined]  # mapped imperatively
    paused = select(queues.c.name).where(
        queues.c.name == literal(model.__queue__), queues.c.paused_at.is_not(None)
    )
    return paused.exists()


def held() -> TableValuedAlias:
    """The claims that a worker speaks for: arrays `ids` and `tokens`."""
    return (
        func.unnest(array("ids", Uuid()), array("tokens", BigInteger()))
        .table_valued(column("id", Uuid()), column("token", BigInteger()))
        .render_derived(name="held")
    )


def still_held(table: Table, claims: FromClause) -> tuple[ColumnElement[bool] | TextClause, ...]:
    """The rows of `table` that still belong to `claims`."""
    return table.c.id == claims.c.id, table.c.token == claims.c.token, text(RUNNING)


@memo
def extend(model: Model) -> ReturningUpdate[Any]:
    """Move the leases of `ids` with `tokens` to `lease` from now. Returns the ids that are still held.

    No index holds lease_expires_at, so this is a HOT update.
    """
    table, claims = table_of(model), held()
    return (
        update(table)
        .where(*still_held(table, claims))
        .values(lease_expires_at=clock.now() + bindparam("lease", type_=Interval()))
        .returning(table.c.id)
    )


@memo
def release(model: Model) -> ReturningUpdate[Any]:
    """Give `ids` with `tokens` back: pending again, the same run and attempt. Returns the ids.

    first_started_at stays: a key that was released by the start must not come back (models.predicates.HELD).
    """
    table, claims = table_of(model), held()
    return (
        update(table)
        .where(*still_held(table, claims))
        .values(
            state="pending", token=table.c.token + 1, claimed_by=None, started_at=None, lease_expires_at=None
        )
        .returning(table.c.id)
    )


@memo
def expired(model: Model) -> Select[Any]:
    """Lock up to `limit` running tasks whose lease is over, the oldest first, passing over locked rows.

    Reads what is running, through its own small index; a lease that was extended meanwhile is seen under the lock.
    """
    table = table_of(model)
    return (
        select(
            table.c.id,
            table.c.token,
            table.c.attempt,
            table.c.max_attempts,
            sql_cast(table.c.retry, Text()).label("retry"),
            table.c.claimed_by,
            table.c.lease_expires_at,
        )
        .where(text(RUNNING), table.c.lease_expires_at < clock.now())
        .order_by(table.c.lease_expires_at, table.c.id)
        .limit(bindparam("limit", type_=Integer()))
        .with_for_update(skip_locked=True)
    )


@memo
def standing(model: Model) -> Select[Any]:
    """State and token of the tasks `ids`: why a write of a worker found nothing."""
    table = table_of(model)
    return select(table.c.id, table.c.state, table.c.token).where(table.c.id == any_(array("ids", Uuid())))
