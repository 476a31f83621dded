"""Wake tasks whose events are settled: the workers' side of statements.waits."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Select,
    Table,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    delete,
    func,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import ReturningDelete, ReturningUpdate
from sqlalchemy.sql.selectable import LateralFromClause

from ..models.names import Role
from ..values import TERMINAL, TaskState
from . import clock
from .cache import cached_statement
from .notifications import NotificationKind, notify_workers
from .plan_shape import ONE, any_of, exists_by_index, opaque_array, opaque_limit
from .tables import Model, table_of


@cached_statement
def mark_settled(model: Model, *, notify: bool) -> ReturningUpdate[Any]:
    """Mark the waits for the events `names` of `queue` as settled.

    Touches no tasks, so a locked task can't block it. With `notify`, notifies idle workers of the waiting
    tasks' queue.
    """
    table = table_of(model, Role.WAITS)
    notification = [notify_workers(model, NotificationKind.WAKE)] if notify else []
    return (
        update(table)
        .where(
            table.c.event_name == any_of("names", Text()),
            table.c.event_queue == bindparam("queue", type_=Text()),
            text("NOT settled"),
        )
        .values(settled=True)
        .returning(table.c.task_id, *notification)
    )


@cached_statement
def awaited_events(model: Model) -> Select[Any]:
    """Return the events of `queues` that open waits are for: queue and name, in order.

    Of each queue, up to `limit` names after the name in the array `after`, some more than once.
    """
    table = table_of(model, Role.WAITS)
    asked = (
        func.unnest(opaque_array("queues", Text()), opaque_array("after", Text()))
        .table_valued(column("queue", Text()), column("after", Text()))
        .render_derived(name="asked")
    )
    names = (
        select(table.c.event_name)
        .where(table.c.event_queue == asked.c.queue, table.c.event_name > asked.c.after, text("NOT settled"))
        .order_by(table.c.event_name)
        .limit(opaque_limit())
        .lateral("names")
    )
    found = select(asked.c.queue, names.c.event_name).select_from(asked.join(names, true()))
    return found.order_by(asked.c.queue, names.c.event_name)


@cached_statement
def wake(model: Model) -> Select[Any]:
    """Make up to `limit` sleepers pending whose events are all settled, and delete their waits.

    Passes over locked rows. Returns how many tasks were woken (`woken`), and how many waits deleted
    (`waits`).
    """
    table, tasks = table_of(model, Role.WAITS), table_of(model)
    steps = _settled_steps(table)
    # LATERAL, as in fencing.lock_held, and with a state that the planner can't match with an index: where it
    # believed that no task sleeps, it searched the index of all sleepers for each wait. A task with several
    # steps comes several times.
    sleeper = (
        select(tasks.c.id)
        .where(tasks.c.id == steps.c.task_id, text(f"{tasks.name}.state || '' = '{TaskState.SLEEPING}'"))
        .with_for_update(skip_locked=True, key_share=True)
        .lateral("sleeper")
    )
    locked = (
        select(sleeper.c.id)
        .select_from(steps.join(sleeper, true()))
        .where(~_waits_for_more(table, steps))
        .limit(opaque_limit())
        .cte("locked")
    )
    woken = (
        update(tasks)
        .where(tasks.c.id == any_(func.array(select(locked.c.id).scalar_subquery())))
        .values(state="pending", available_at=clock.now())
        .returning(tasks.c.id)
        .cte("woken")
    )
    gone = (
        delete(table)
        .where(
            table.c.task_id == any_(func.array(select(woken.c.id).scalar_subquery())),
            text(f"{table.name}.settled"),
        )
        .returning(table.c.task_id)
        .cte("gone")
    )
    return select(
        select(func.count()).select_from(woken).scalar_subquery().label("woken"),
        select(func.count()).select_from(gone).scalar_subquery().label("waits"),
    )


@cached_statement
def forget_ended(model: Model) -> ReturningDelete[Any]:
    """Delete the waits of tasks among `ids` (an array) that have ended, passing over locked rows."""
    table, tasks = table_of(model, Role.WAITS), table_of(model)
    # Locked, because a task that is retried meanwhile needs its new waits.
    over = (
        select(tasks.c.id.label("task_id"))
        .where(tasks.c.id == any_of("ids", Uuid()), tasks.c.state.in_(_ENDED))
        .with_for_update(skip_locked=True, key_share=True)
        .cte("over")
    )
    wait = _locked_waits(table, over.c.task_id)
    return _delete(table, select(*wait.c).select_from(over.join(wait, true())))


@cached_statement
def forget_idle(model: Model) -> ReturningDelete[Any]:
    """Delete up to `limit` settled waits that wake no task.

    These are waits of tasks that have ended or are pending, and waits whose step also waits for events that
    aren't settled. Waits of running tasks stay, because the task may be about to sleep.
    """
    table, tasks = table_of(model, Role.WAITS), table_of(model)
    steps = _settled_steps(table)
    state = select(tasks.c.state).where(tasks.c.id == steps.c.task_id).correlate(steps).scalar_subquery()
    idle = or_(state.in_([*_ENDED, TaskState.PENDING]), _waits_for_more(table, steps))
    wait = _locked_waits(table, steps.c.task_id, steps.c.step, settled=True)
    rows = select(*wait.c).select_from(steps.join(wait, true())).where(idle)
    return _delete(table, rows.limit(opaque_limit()))


_ENDED = sorted(TERMINAL)


def _settled_steps(table: Table) -> CTE:
    """Return the steps that have settled waits, in order, one at a time, as many as the outer LIMIT asks for.

    Steps and not waits, so that a step that joins 5,000 tasks is checked once. (Checked for each settled
    wait, with a scan of the others each time, it took 26 s.) Recursive, to go from step to step in the index:
    DISTINCT would read all waits.
    """
    first, then = table.alias("first"), table.alias("then")
    steps = (
        select(first.c.task_id, first.c.step)
        .where(text("first.settled"))
        .order_by(first.c.task_id, first.c.step)
        .limit(ONE)
        .cte("steps", recursive=True)
    )
    following = (
        select(then.c.task_id, then.c.step)
        .where(
            text('"then".settled'),
            tuple_(then.c.task_id, then.c.step) > tuple_(steps.c.task_id, steps.c.step),
        )
        .order_by(then.c.task_id, then.c.step)
        .limit(ONE)
        .lateral("following")
    )
    rest = select(following.c.task_id, following.c.step).select_from(steps.join(following, true()))
    return steps.union_all(rest)


def _waits_for_more(table: Table, steps: CTE) -> ColumnElement[bool]:
    """Return the condition that a step also waits for events that aren't settled."""
    other = table.alias("other")
    more = select(other.c.task_id).where(
        other.c.task_id == steps.c.task_id, other.c.step == steps.c.step, text("NOT other.settled")
    )
    return exists_by_index(more.correlate(steps))


def _locked_waits(
    table: Table,
    task_id: ColumnElement[Any],
    step: ColumnElement[Any] | None = None,
    *,
    settled: bool = False,
) -> LateralFromClause:
    """Lock and return the free waits of a task, or of its step."""
    wait = table.alias("wait")
    rows = select(*wait.primary_key).where(wait.c.task_id == task_id)
    if step is not None:
        rows = rows.where(wait.c.step == step)
    if settled:
        rows = rows.where(text("wait.settled"))
    return rows.with_for_update(skip_locked=True).lateral("waits")


def _delete(table: Table, rows: Select[Any]) -> ReturningDelete[Any]:
    free = rows.cte("free")
    return (
        delete(table)
        .where(
            # Makes the planner search by the tasks' ids. A join alone may read the whole table.
            table.c.task_id == any_(func.array(select(free.c.task_id).scalar_subquery())),
            tuple_(*table.primary_key).in_(select(*free.c)),
        )
        .returning(table.c.task_id)
    )
