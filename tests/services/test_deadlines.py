"""B6: a task is given up that doesn't start, or doesn't end, in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Cancellation, Cancelled, Durable, Fixed, InvalidOptions, TaskError
from sa_durable.policy import RetryAfter
from sa_durable.services import checkpoints, claims, maintenance, runs
from sa_durable.testing import queue_factory
from tests.services import state_changes
from tests.services.claiming import change, claim, do, expire, history, row, spawn
from tests.shop import BillingTask, MailTask, charge, send_mail
from tests.waiting import in_thread

pytestmark = pytest.mark.service

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
LIMITS = Cancellation(start_within=HOUR, max_duration=2 * HOUR)
SOON = datetime(2100, 1, 1, tzinfo=UTC)
ERROR = TaskError("ValueError", "no")


def sweep(engine: Any, limit: int = 10) -> list[Any]:
    return do(engine, maintenance.sweep_overdue, limit=limit).cancelled


def later(engine: Any, task: Any, by: timedelta) -> None:
    """As if that much time had passed for it."""
    tasks = MailTask
    change(
        engine,
        [task],
        cancel_at=tasks.cancel_at - by,
        started_at=tasks.started_at - by,
        first_started_at=tasks.first_started_at - by,
        available_at=tasks.available_at - by,
    )


# Every way to spawn


WAYS = {
    "spawn": lambda d: [d.durable.spawn(send_mail.call(to="x"), cancellation=LIMITS)],
    "with a key": lambda d: [d.durable.spawn(send_mail.call(to="x"), only_once=True, cancellation=LIMITS)],
    "a delay": lambda d: [d.durable.spawn(send_mail.call(to="x"), delay=HOUR, cancellation=LIMITS)],
    "run_at": lambda d: [d.durable.spawn(send_mail.call(to="x"), run_at=SOON, cancellation=LIMITS)],
    "a batch": lambda d: d.durable.spawn_many(
        [send_mail.call(to="x"), send_mail.call(to="y").using(delay=HOUR)], cancellation=LIMITS
    ),
    "calls of a batch": lambda d: d.durable.spawn_many(
        [send_mail.call(to=to).using(cancellation=LIMITS) for to in "xy"]
    ),
    "debounced": lambda d: [
        d.durable.spawn(
            send_mail.call(to=to), idempotency_key="k", on_duplicate="update", cancellation=limits
        )
        for to, limits in (("x", None), ("y", LIMITS))
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_start_within_counts_from_the_due_time(client, engine, way):
    spawned = WAYS[way](client)
    client.session.commit()
    for result in spawned:
        task = row(engine, result.task_id)
        assert task.cancel_at == task.available_at + HOUR and task.max_duration == 2 * HOUR


def test_a_task_object_carries_the_limits_of_its_handler(engine, session):
    @BillingTask.handler("limited", cancellation=LIMITS, delay=HOUR)
    def limited(ctx: object) -> None: ...

    try:
        task = limited.task()
        session.add(task)
        session.commit()
        assert task.cancel_at == task.available_at + HOUR and task.max_duration == 2 * HOUR
        assert task.state == "sleeping" and task.available_at == task.created_at + HOUR
    finally:
        del BillingTask.__handlers__["limited"]


def test_limits_are_independent_and_an_update_removes_them(engine, session):
    durable, key = Durable(session), {"idempotency_key": "k", "on_duplicate": "update"}
    starts = durable.spawn(send_mail.call(to="x"), cancellation=Cancellation(start_within=HOUR)).task
    ends = durable.spawn(send_mail.call(to="x"), cancellation=Cancellation(max_duration=HOUR)).task
    assert (starts.max_duration, starts.cancel_at) == (None, starts.available_at + HOUR)
    assert (ends.max_duration, ends.cancel_at) == (HOUR, None)
    updated = durable.spawn(send_mail.call(to="x"), cancellation=LIMITS, **key).task
    durable.spawn(send_mail.call(to="x"), **key)
    assert (updated.max_duration, updated.cancel_at) == (None, None)


def test_limits_that_cannot_work_are_refused(client):
    for wrong in (HOUR, Cancellation(start_within=-HOUR), Cancellation(max_duration=timedelta(0))):
        with pytest.raises(InvalidOptions, match="cancellation"):
            client.durable.spawn(charge.call(1), cancellation=wrong)


# Its end


def test_second_failure_after_max_duration_cancels_the_task(engine):
    ninety = Cancellation(max_duration=timedelta(seconds=90))
    [task] = spawn(engine, retry=Fixed(10 * SECOND, jitter=0), max_attempts=5, cancellation=ninety)
    [first] = claim(engine)
    started = row(engine, task)
    assert started.cancel_at == started.first_started_at + timedelta(seconds=90)
    assert isinstance(do(engine, runs.fail, first, ERROR), RetryAfter)
    later(engine, task, 30 * SECOND)
    assert do(engine, maintenance.promote, limit=1).woken == 1
    [second] = claim(engine)
    assert row(engine, task).cancel_at == started.cancel_at - 30 * SECOND  # over all attempts
    later(engine, task, 61 * SECOND)
    do(engine, runs.fail, second, ERROR)
    over = row(engine, task)
    assert (over.state, over.attempt, over.error) == ("cancelled", 2, ERROR.to_json())
    assert over.finished_at and over.lease_expires_at is None
    assert [(run.attempt, run.state) for run in history(engine, task)] == [(1, "failed"), (2, "failed")]
    assert claim(engine) == [] and sweep(engine) == []


@pytest.mark.parametrize("state", ["running", "sleeping", "pending"])
def test_a_started_task_whose_time_is_over_is_cancelled_wherever_it_is(engine, state):
    policy = {"running": Fixed(), "sleeping": Fixed(HOUR), "pending": Fixed(timedelta(0))}[state]
    [task] = spawn(engine, retry=policy, cancellation=LIMITS)
    [got] = claim(engine)
    if state != "running":
        do(engine, runs.fail, got, ERROR)
    assert row(engine, task).state == state and sweep(engine) == []
    later(engine, task, 2 * HOUR)
    token = row(engine, task).token
    assert sweep(engine) == [task]
    over, past = row(engine, task), history(engine, task)
    assert (over.state, over.token) == ("cancelled", token + 1) and over.finished_at
    assert over.error["type"] == "DeadlineExceeded" and "max_duration" in over.error["message"]
    assert [run.state for run in past] == ["cancelled" if state == "running" else "failed"]
    assert sweep(engine) == []


# B7
def test_run_of_a_task_past_its_deadline_learns_of_the_cancellation(engine):
    [task] = spawn(engine, cancellation=LIMITS)
    [got] = claim(engine)
    later(engine, task, 2 * HOUR)
    sweep(engine)
    assert do(engine, claims.extend, {task: got.token}, lease=HOUR) == set()
    assert isinstance(do(engine, claims.claim_status, {task: got.token})[task], Cancelled)
    for service, *args in ((runs.complete, got, "late"), (checkpoints.save, got, "step", "1")):
        with pytest.raises(Cancelled):
            do(engine, service, *args)


def test_a_lost_worker_and_an_elapsed_time_end_the_task_once(engine):
    [task] = spawn(engine, cancellation=LIMITS, retry=Fixed())
    claim(engine)
    later(engine, task, 2 * HOUR)
    expire(engine, [task])
    [lost] = do(engine, maintenance.sweep_expired, limit=10)
    assert not lost.retried and sweep(engine) == []
    assert (row(engine, task).state, len(history(engine, task))) == ("cancelled", 1)


def test_deadline_cancels_descendants_in_every_queue(engine):
    [root] = spawn(engine, cancellation=LIMITS)
    with Session(engine) as session, session.begin():
        child = Durable(session).spawn(charge.call(1))
        child.task.parent_queue, child.task.parent_id = "mail", root
        session.flush()
        grandchild = Durable(session).spawn(send_mail.call(to="x"))
        grandchild.task.parent_queue, grandchild.task.parent_id = "billing", child.task_id
    other = spawn(engine, cancellation=LIMITS)
    change(engine, [root, *other], cancel_at=func.now() - HOUR)
    assert set(sweep(engine) + sweep(engine)) == {root, *other}
    with Session(engine) as session:
        assert Durable(session).result(child).state == "cancelled"
        assert Durable(session).result(grandchild).state == "cancelled"


# Its start


@pytest.mark.parametrize("options", [{}, {"delay": HOUR}])
def test_task_that_missed_its_start_is_cancelled_and_never_claimed(engine, options):
    [task] = spawn(engine, cancellation=LIMITS, **options)
    assert sweep(engine) == []
    later(engine, task, 3 * HOUR)
    assert do(engine, maintenance.promote, limit=10).woken == len(options)
    assert row(engine, task).state == "pending" and claim(engine) == []  # before the sweep, too
    assert sweep(engine) == [task]
    over = row(engine, task)
    assert (over.state, over.first_started_at, history(engine, task)) == ("cancelled", None, [])
    assert over.error["type"] == "DeadlineExceeded" and "start_within" in over.error["message"]


def test_a_task_that_has_started_has_no_time_to_start_any_more(engine):
    [task] = spawn(engine, cancellation=Cancellation(start_within=HOUR), retry=Fixed(timedelta(0)))
    [got] = claim(engine)
    assert row(engine, task).cancel_at is None
    do(engine, runs.fail, got, ERROR)
    assert row(engine, task).cancel_at is None and sweep(engine) == []


@pytest.mark.owner
def test_deadlines_of_a_paused_queue_fire(engine):
    [task] = spawn(engine, cancellation=LIMITS)
    change(engine, [task], cancel_at=func.now() - SECOND)
    with Session(engine) as session, session.begin():
        queue_factory(MailTask, session)(paused=True)
    assert sweep(engine) == [task]


def test_a_key_is_free_once_its_holders_time_was_over(engine, session):
    [task] = spawn(engine, cancellation=LIMITS, idempotency_key="k")
    change(engine, [task], cancel_at=func.now() - SECOND)
    assert not Durable(session).spawn(send_mail.call(to="x"), idempotency_key="k").created  # not swept yet
    session.rollback()
    sweep(engine)
    assert Durable(session).spawn(send_mail.call(to="x"), idempotency_key="k").created


# B2, B3


def test_a_sweep_takes_as_many_as_it_may_and_the_longest_overdue_first(engine):
    tasks = spawn(engine, 5, cancellation=LIMITS)
    for n, task in enumerate(tasks):
        change(engine, [task], cancel_at=func.now() - (n + 1) * HOUR)
    assert sweep(engine, limit=1) == [tasks[4]]
    assert set(sweep(engine, limit=2)) == {tasks[3], tasks[2]}
    assert [row(engine, task).state for task in tasks] == 2 * ["pending"] + 3 * ["cancelled"]


def test_a_locked_overdue_task_blocks_neither_claims_nor_sweeps(engine):
    locked, other = spawn(engine, 2, cancellation=LIMITS)
    [ready] = spawn(engine)
    change(engine, [locked, other], cancel_at=func.now() - HOUR)
    with Session(engine) as session, session.begin():
        session.get(MailTask, locked, with_for_update=True)
        assert in_thread(sweep, engine).result(60) == [other]
        assert [c.task_id for c in in_thread(claim, engine, 10).result(60)] == [ready]
    assert sweep(engine) == [locked]


def test_next_deadline_is_returned(engine):
    assert do(engine, maintenance.sweep_overdue, limit=1).next_due is None
    overdue, _ = spawn(engine, 2, cancellation=LIMITS)
    change(engine, [overdue], cancel_at=func.now() - HOUR)
    done = do(engine, maintenance.sweep_overdue, limit=1)
    assert done.cancelled == [overdue] and timedelta(minutes=59) < done.next_due <= HOUR


# B7, Durable.cancel itself


def test_second_cancel_changes_nothing(client, engine):
    with Session(engine) as session, session.begin():
        tasks = {}
        for life in ("cancelled", "cancelled unseen", "completed", "failed"):
            tasks[life] = Durable(session).spawn(charge.call(1)).task_id
            state_changes.live(session, tasks[life], life)
    with Session(engine) as session:
        before = session.execute(select(BillingTask.id, BillingTask.finished_at, BillingTask.token)).all()
    for task in tasks.values():
        assert client.durable.cancel(BillingTask, task) is False
    client.session.commit()
    with Session(engine) as session:
        after = session.execute(select(BillingTask.id, BillingTask.finished_at, BillingTask.token)).all()
    assert sorted(before) == sorted(after) and all(row.finished_at for row in after)
