"""Delete ended tasks and settled events that no task needs any more.

Results that a task joined and events that it awaited are in its checkpoints: the originals are no longer
needed. They are needed while a task sleeps for them, or was woken for them and hasn't read them yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Interval,
    ScalarSelect,
    Select,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    delete,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    text,
    true,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.dml import ReturningDelete

from ..models.names import Role
from ..models.predicates import PENDING, RUNNING, TERMINAL
from . import clock
from .cache import cached_statement
from .events import TASK_EVENT
from .plan_shape import exists_by_index, opaque_limit
from .tables import Model, table_of

Models = tuple[Model, ...]


@cached_statement
def delete_finished(model: Model, beside: Models) -> ReturningDelete[Any]:
    """Delete up to `limit` tasks that ended more than `older_than` ago, the oldest first. Returns their ids.

    `beside` are all queues of the Base. Kept are tasks that rows of the application refer to, that a waiting
    task joins, or whose parent is active or ended less than `older_than` ago: the parent may be retried, and
    join them then. Locked rows are passed over. The conditions are checked again under the lock, so a task
    that was just retried stays. Through the ORM, so that loaded objects are deleted too. History, checkpoints
    and waits are deleted by cascade.

    The task's own waits are locked first. The foreign key's cascade would wait for waits that are just being
    settled, in an order of its own, and deadlock (tests.races.test_lock_order_inside).
    """
    table = table_of(model)
    ended = table.alias("ended")
    news = literal(TASK_EVENT) + sql_cast(ended.c.id, Text())
    joined = or_(
        *(_waited_for(news, model, queue) for queue in beside),
        *(_joined_with_others(ended.c.finished_at, queue) for queue in beside),
        _unread(ended.c.finished_at, beside),
    )
    needed = or_(
        *(_child(ended, queue) for queue in beside),
        and_(ended.c.awaited, joined),
        *_referred_to(table, ended),
    )
    old = (
        select(ended.c.id)
        .where(ended.c.finished_at <= _cutoff(), text(f"ended.{TERMINAL}"), not_(needed))
        .order_by(ended.c.finished_at)
        .limit(opaque_limit())
        .with_for_update(of=ended, skip_locked=True)
        .cte("old")
    )
    waits = table_of(model, Role.WAITS)
    left = select(waits.c.task_id).where(waits.c.task_id == old.c.id)
    free = left.with_for_update(skip_locked=True).lateral("free")
    own = select(free.c.task_id).select_from(old.join(free, true())).cte("ours")
    gone = select(old.c.id).where(_count_of(waits, old) == _count_of(own, old))
    return delete(model).where(model.id == any_(func.array(gone.scalar_subquery()))).returning(model.id)


@cached_statement
def delete_settled(model: Model, beside: Models) -> ReturningDelete[Any]:
    """Delete up to `limit` events that were settled or dropped more than `older_than` ago, oldest first.

    Returns their ids. Kept are events that a task waits for, or that a woken task may not have read yet.
    """
    table = table_of(model, Role.EVENTS)
    event = table.alias("event")
    needed = or_(
        *(_waited_for(event.c.name, model, queue) for queue in beside), _unread(event.c.settled_at, (model,))
    )
    old = (
        select(event.c.id)
        .where(event.c.settled_at <= _cutoff(), or_(event.c.dropped, not_(needed)))
        .order_by(event.c.settled_at)
        .limit(opaque_limit())
        .with_for_update(of=event, skip_locked=True)
    )
    return delete(table).where(table.c.id == any_(func.array(old.scalar_subquery()))).returning(table.c.id)


@cached_statement
def retentions(queues: Table) -> Select[Any]:
    """Return the queues that have a `retention`, and the retention."""
    return select(queues.c.name, queues.c.retention).where(queues.c.retention.is_not(None))


def _count_of(waits: FromClause, tasks: FromClause) -> ScalarSelect[int]:
    """Count the waits of a task."""
    counted = select(func.count()).select_from(waits).where(waits.c.task_id == tasks.c.id)
    return counted.correlate(tasks).scalar_subquery()


def _cutoff() -> ColumnElement[Any]:
    """Return the time `older_than` ago."""
    return clock.before(sql_cast(bindparam("older_than", type_=Interval()), Interval()))


def _child(ended: FromClause, queue: Model) -> ColumnElement[bool]:
    """Return the condition that the parent is a task of `queue` that may still join the task."""
    parent = table_of(queue).alias("parent")
    recent = or_(parent.c.finished_at.is_(None), parent.c.finished_at > _cutoff())
    may_join = exists_by_index(select(parent.c.id).where(parent.c.id == ended.c.parent_id, recent))
    return and_(ended.c.parent_queue == queue.__queue__, may_join)


def _waited_for(name: ColumnElement[str], model: Model, queue: Model) -> ColumnElement[bool]:
    """Return the condition that a task of `queue` waits for event `name` of `model`.

    A step that has this event but also waits for others still needs it. There are few such waits, so they are
    read once. The others are looked up by index.
    """
    open_, met = table_of(queue, Role.WAITS).alias("open"), table_of(queue, Role.WAITS).alias("met")
    of_model = literal(model.__queue__)
    waits = select(open_.c.task_id).where(
        text("NOT open.settled"), open_.c.event_name == name, open_.c.event_queue == of_model
    )
    read = select(met.c.event_name).where(text("met.settled"), met.c.event_queue == of_model)
    return or_(exists_by_index(waits), name.in_(read))


def _joined_with_others(since: ColumnElement[Any], queue: Model) -> ColumnElement[bool]:
    """Return the condition that a task of `queue` may join this task together with others that haven't ended.

    True if such a join began before this task ended. The result is read when the last of them has ended, but
    the wait for this task is deleted by then (statements.wake.forget_idle).
    """
    join = table_of(queue, Role.WAITS).alias("join")
    joins = select(func.min(join.c.created_at)).where(
        text('NOT "join".settled'), join.c.event_name.startswith(TASK_EVENT, autoescape=True)
    )
    return func.coalesce(since >= joins.scalar_subquery(), literal_column("false"))


def _unread(since: ColumnElement[Any], queues: Models) -> ColumnElement[bool]:
    """Return the condition that a woken task may not have read this result or event, since it hasn't run.

    A task that was woken may not run for `older_than`: its queue is paused, or it has no workers. Its wait is
    deleted by then, and the result or event isn't read yet. So nothing is old that came after the first start
    of such a task.
    """

    def first_start(queue: Model, state: str) -> ColumnElement[Any]:
        task = table_of(queue).alias("task")
        resumed = (text(f"task.{state}"), task.c.token > 1, task.c.available_at <= _cutoff())
        return select(func.min(task.c.first_started_at)).where(*resumed).scalar_subquery()

    starts = [first_start(queue, state) for queue in queues for state in (PENDING, RUNNING)]
    return func.coalesce(since >= func.least(*starts), False)


def _referred_to(tasks: Table, ended: FromClause) -> Iterator[ColumnElement[bool]]:
    """Yield the conditions that a row of the application refers to the task and would block its deletion."""
    for table in tasks.metadata.tables.values():
        for key in table.foreign_key_constraints:
            kept = (key.ondelete or "NO ACTION").upper() in ("NO ACTION", "RESTRICT")
            if kept and key.referred_table is tasks:
                row = table.alias("referring")
                pairs = (row.c[e.parent.key] == ended.c[e.column.key] for e in key.elements)
                yield exists_by_index(select(true()).select_from(row).where(*pairs))
