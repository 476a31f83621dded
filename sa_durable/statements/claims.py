"""Claims and leases: which worker may run a task, until when, and how a claim ends early.

Every statement that acts for a worker names the token of its claim and checks the state 'running'. Arrays are
sorted by id, so that two workers that write several rows lock them in one order.
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
    """Claim up to `limit` ready tasks with one of the `names` for `worker`, with a lease of `lease`.

    Nothing while the queue is paused. With `behind`, only tasks within the scan range: of priorities from
    `lows` to `highs` (arrays), in their order, the tasks that have been ready for at most `withins`.

    Scans the ready index once for each name, so that tasks with other names cost nothing, wherever they are
    in it. Passes over locked rows. `= ANY (ARRAY(...))` instead of a join, because the planner always answers
    it by primary key, even right after a bulk insert, before the table was analyzed, and in a generic plan
    (measured at 150,000 rows). Returns JSON as text: a row that can't be decoded must not fail the whole
    batch.
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
            # Replaces the deadline to start by the deadline to end.
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
    """Restrict `candidates` to the scan range, with one index scan for each of its parts.

    It stops when there are enough, so it locks no more rows than the claim without a range. Each part is one
    of priorities, because before PostgreSQL 18 an index scan can't start at a due time without a priority.
    The result needs no sort: each scan returns rows in the claim's order, and the parts are ordered.
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
    """Count the tasks that a claim could take now, after the due sleepers were woken. Counts up to `limit`.

    0 while the queue is paused. With `named`, only tasks with one of the `names`. Reads at most twice `limit`
    rows, of two partial indexes.
    """

    def counted(alias: str, state: str, order: tuple[str, ...]) -> ScalarSelect[Any]:
        task = table_of(model).alias(alias)
        found = select(task.c.id).where(text(f"{alias}.{state}"), not_overdue(task))
        if state == SLEEPING:
            found = found.where(task.c.available_at <= clock.now())
        if named:
            found = found.where(task.c.name == any_of("names", Text()))
        # Only the index has this order, so the planner reads the index, and not the table.
        found = found.order_by(*(task.c[name] for name in order)).limit(opaque_limit())
        return select(func.count()).select_from(found.subquery()).scalar_subquery()

    pending = counted("pending", PENDING, ("name", "priority", "available_at", "id"))
    both = pending + counted("sleeper", SLEEPING, ("available_at",))
    return select(case((paused(model), 0), else_=func.least(both, opaque_limit())))


def not_overdue(task: FromClause) -> ColumnElement[bool]:
    """Return the condition that a task is not past its deadline. Tasks past it are left to the sweep.

    Written with `<>`, for which the planner expects nearly all rows to match (see plan_shape.opaque_limit).
    """
    return case((task.c.cancel_at <= clock.now(), 1), else_=0) != 1


def paused(model: Model) -> ColumnElement[bool]:
    """Return the condition that the queue is paused."""
    queues = model.Queue.__table__
    row = select(queues.c.name).where(
        queues.c.name == literal(model.__queue__), queues.c.paused_at.is_not(None)
    )
    return row.exists()


@cached_statement
def extend(model: Model) -> ReturningUpdate[Any]:
    """Extend the leases of claims `ids` with `tokens` to `lease` from now, and return the ids still held.

    Passes over locked rows. No index has lease_expires_at, so this is a HOT update.
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
    """Release the claims `ids` with `tokens`, and return the ids that were still held.

    The tasks are pending again, in the same run and attempt. Passes over locked rows. Notifies idle workers.
    `first_started_at` stays: a key that was released at the first start must not be held again
    (models.predicates.HELD).
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
    """Lock up to `limit` running tasks whose lease has expired, the oldest first, passing over locked rows.

    Reads all running tasks, through their own small index. PostgreSQL checks each row again under its lock,
    so a lease that was extended meanwhile is seen.
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
    """Wait for locks at most `longest`, then raise an error, until the transaction ends."""
    milliseconds = str(round(longest / timedelta(milliseconds=1)))
    return select(func.set_config("lock_timeout", milliseconds, True))


@cached_statement
def statuses(model: Model, *, lock: bool = False) -> Select[Any]:
    """Return state and token of the tasks `ids`, which say why a worker's write found no row.

    With `lock`, for one task, wait for the transaction that writes it.
    """
    table = table_of(model)
    found = select(table.c.id, table.c.state, table.c.token).where(table.c.id == any_of("ids", Uuid()))
    return found.with_for_update(key_share=True) if lock else found
