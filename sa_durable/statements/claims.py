"""Claims and leases: who may run a task, until when, and how it is taken away.

Every statement that acts for a worker names the token of its claim and asks for state 'running'. Arrays travel in
the order of ids, so that two workers who write several rows take their locks in one order.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Interval,
    ScalarSelect,
    Select,
    SmallInteger,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
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

from ..models.predicates import PENDING, RUNNING, SLEEPING
from . import clock
from .cache import cached_statement
from .fencing import lock_claims
from .notifications import NotificationKind, notify_workers
from .plan_shape import any_of, opaque_array, opaque_limit
from .tables import Model, table_of


@cached_statement
def claim(model: Model, *, behind: bool = False) -> ReturningUpdate[Any]:
    """Give up to `limit` ready tasks called one of `names` to `worker` for the time of `lease`. Nothing while the
    queue is paused. With `behind`, of those within reach: of priorities from `lows` to `highs`, in their order, what has been
    ready for at most `withins`.

    The ready index is walked once per name, so rows of other names cost nothing, wherever they stand. Locked rows
    are passed over. `= ANY (ARRAY(...))` and no join: the planner always answers it by primary key, also right
    after a bulk insert, before anybody has analysed the table, and in a generic plan (measured at 150k rows).
    JSON comes as text: one row that can't be read must not cost the batch.
    """
    table = table_of(model)
    ready = table.alias("ready")
    known = (
        func.unnest(opaque_array("names", Text()))
        .table_valued(column("name", Text()))
        .render_derived(name="known")
    )
    order = ("priority", "available_at", "id")
    candidates = (
        select(*(ready.c[c] for c in order))
        .where(text(f"ready.{PENDING}"), ready.c.name == known.c.name, not_overdue(ready))
        .order_by(*(ready.c[c] for c in order))
        .limit(opaque_limit())
        .with_for_update(skip_locked=True, of=ready)
    )
    candidate = (_within_reach(candidates, known, ready) if behind else candidates).lateral("candidate")
    first = (
        select(candidate.c.id)
        .select_from(known)
        .join(candidate, true())
        .where(~paused(model))
        .order_by(*(candidate.c[c] for c in order))
        .limit(opaque_limit())
    )
    return (
        update(table)
        .where(table.c.id == any_(func.array(first.scalar_subquery())))
        .values(
            state="running",
            token=table.c.token + 1,
            claimed_by=bindparam("worker", type_=Text()),
            lease_expires_at=clock.after(bindparam("lease", type_=Interval())),
            started_at=clock.now(),
            first_started_at=func.coalesce(table.c.first_started_at, clock.now()),
            # From its deadline to start to its deadline to end
            cancel_at=case(
                (table.c.first_started_at.is_(None), clock.after(table.c.max_duration)),
                else_=table.c.cancel_at,
            ),
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
            (clock.now() - table.c.available_at).label("waited"),
        )
    )


def _within_reach(candidates: Select[Any], known: FromClause, ready: FromClause) -> Select[Any]:
    """One walk for each part, until there are enough: no more are locked than without.

    PostgreSQL before 18 finds no place in the ready index by a due time alone, only behind a priority. A part needs no sort
    of its own: its walks come in its order, and they in that of the parts.
    """
    arrays = (
        opaque_array("lows", SmallInteger()),
        opaque_array("highs", SmallInteger()),
        opaque_array("withins", Interval()),
    )
    columns = (column("low", SmallInteger()), column("high", SmallInteger()), column("within", Interval()))
    part = func.unnest(*arrays).table_valued(*columns, with_ordinality="number").render_derived(name="part")
    reached = candidates.where(
        ready.c.priority >= part.c.low,
        ready.c.priority <= part.c.high,
        ready.c.available_at >= clock.now() - part.c.within,
    )
    found = reached.correlate(known, part).lateral("found")
    return (
        select(*found.c).select_from(part.join(found, true())).order_by(part.c.number).limit(opaque_limit())
    )


@cached_statement
def count_ready(model: Model, *, named: bool) -> Select[Any]:
    """How many tasks, called one of `names` if `named`, a claim could take now, once the sleepers that are due are woken;
    counted up to `limit`. None while the queue is paused.

    Reads at most twice that many rows, of two partial indexes.
    """

    def counted(alias: str, state: str, order: tuple[str, ...]) -> ScalarSelect[Any]:
        task = table_of(model).alias(alias)
        found = select(task.c.id).where(text(f"{alias}.{state}"), not_overdue(task))
        if state == SLEEPING:
            found = found.where(task.c.available_at <= clock.now())
        if named:
            found = found.where(task.c.name == any_of("names", Text()))
        # In the order of its index, which makes the planner read that, and not the table.
        found = found.order_by(*(task.c[name] for name in order)).limit(opaque_limit())
        return select(func.count()).select_from(found.subquery()).scalar_subquery()

    pending = counted("pending", PENDING, ("name", "priority", "available_at", "id"))
    both = pending + counted("sleeper", SLEEPING, ("available_at",))
    return select(case((paused(model), 0), else_=func.least(both, opaque_limit())))


def not_overdue(task: FromClause) -> ColumnElement[bool]:
    """Not overdue: else the sweep has it. As `<>`, of which the planner expects nearly all: see planning.at_most."""
    return case((task.c.cancel_at <= clock.now(), 1), else_=0) != 1


def paused(model: Model) -> ColumnElement[bool]:
    """Whether somebody has paused the queue."""
    queues = model.Queue.__table__
    row = select(queues.c.name).where(
        queues.c.name == literal(model.__queue__), queues.c.paused_at.is_not(None)
    )
    return row.exists()


@cached_statement
def extend(model: Model) -> ReturningUpdate[Any]:
    """Move the leases of `ids` with `tokens` to `lease` from now. Returns the ids that are still held and that nobody
    has locked.

    No index holds lease_expires_at, so this is a HOT update.
    """
    table = table_of(model)
    return (
        update(table)
        .where(table.c.id == any_(func.array(lock_claims(table))))
        .values(lease_expires_at=clock.after(bindparam("lease", type_=Interval())))
        .returning(table.c.id)
    )


@cached_statement
def release(model: Model) -> ReturningUpdate[Any]:
    """Give `ids` with `tokens` back: pending again, the same run and attempt. Returns the ids that were still held and
    that nobody had locked. Idle workers are told.

    first_started_at stays: a key that was released by the start must not come back (models.predicates.HELD).
    """
    table = table_of(model)
    return (
        update(table)
        .where(table.c.id == any_(func.array(lock_claims(table))))
        .values(
            state="pending", token=table.c.token + 1, claimed_by=None, started_at=None, lease_expires_at=None
        )
        .returning(table.c.id, notify_workers(model, NotificationKind.READY))
    )


@cached_statement
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
            table.c.cancel_at,
        )
        .where(text(RUNNING), table.c.lease_expires_at < clock.now())
        .order_by(table.c.lease_expires_at, table.c.id)
        .limit(opaque_limit())
        .with_for_update(skip_locked=True)
    )


@cached_statement
def set_lock_timeout(longest: timedelta) -> Select[Any]:
    """Locks are waited for so long, and then an error, until the transaction ends."""
    milliseconds = str(round(longest / timedelta(milliseconds=1)))
    return select(func.set_config("lock_timeout", milliseconds, True))


@cached_statement
def statuses(model: Model, *, lock: bool = False) -> Select[Any]:
    """State and token of the tasks `ids`: why a write of a worker found nothing. With `lock`, for one task, it waits for
    whoever writes it."""
    table = table_of(model)
    found = select(table.c.id, table.c.state, table.c.token).where(table.c.id == any_of("ids", Uuid()))
    return found.with_for_update(key_share=True) if lock else found
