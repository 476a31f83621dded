"""Durable.runs: history and current attempt as one list. Durable.count_ready: what an autoscaler asks."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func
from sqlalchemy.orm import Session

from sa_durable import Cancellation, Durable, Fixed, InvalidOptions, TaskError, TaskNotFound, TaskState
from sa_durable.services import maintenance, runs
from sa_durable.testing import queue_factory, task_factory
from tests.services import state_changes
from tests.services.claiming import change, claim, do, expire, row, spawn
from tests.services.observed import statements
from tests.shop import BillingTask, MailTask, charge

pytestmark = pytest.mark.service

HOUR = timedelta(hours=1)


def test_every_attempt_is_listed_in_order_and_the_current_one_last(client, engine):
    [task] = spawn(engine, retry=Fixed(timedelta(0)))
    [unseen] = client.durable.runs(MailTask, task)
    assert (unseen.attempt, unseen.state, unseen.worker, unseen.started_at, unseen.ended_at) == (
        1,
        TaskState.PENDING,
        None,
        None,
        None,
    )
    client.session.rollback()
    [first] = claim(engine)
    do(engine, runs.fail, first, TaskError("ValueError", "no", "tb"))
    [second] = claim(engine, worker="w2")
    expire(engine, [task])
    assert do(engine, maintenance.sweep_expired, limit=10)
    [third] = claim(engine, worker="w3")
    one, two, three = client.durable.runs(MailTask, task)
    assert [run.run_id for run in (one, two, three)] == [c.run_id for c in (first, second, third)]
    assert [run.attempt for run in (one, two, three)] == [1, 2, 3]
    assert (one.state, one.worker, one.error) == ("failed", "w1", TaskError("ValueError", "no", "tb"))
    assert (two.state, two.worker, two.error.type) == ("failed", "w2", "LeaseExpired")
    assert two.lease_expires_at < two.ended_at and one.started_at < one.ended_at <= two.started_at
    assert (three.state, three.worker, three.ended_at, three.error) == (TaskState.RUNNING, "w3", None, None)
    assert three.lease_expires_at > three.started_at


@pytest.mark.parametrize("life", state_changes.LIVES)
def test_the_last_one_is_how_the_task_stands(engine, session, life):
    spawned = Durable(session).spawn(charge.call(1))
    state_changes.live(session, spawned.task_id, life)
    task = spawned.task
    session.refresh(task)
    last = Durable(session).runs(task)[-1]
    assert (last.run_id, last.attempt, last.state) == (task.run_id, task.attempt, task.state)
    assert last.ended_at == task.finished_at and last.state.terminal == (last.ended_at is not None)
    assert last.error == (TaskError("ValueError", "no") if life == "failed" else None)


def test_an_attempt_in_the_history_is_not_listed_twice(engine):
    [task] = spawn(engine)
    [first] = claim(engine)
    do(engine, runs.fail, first, TaskError("ValueError", "no"))
    [last] = do(engine, lambda session, model: Durable(session).runs(model, task))
    assert (last.run_id, last.state) == (first.run_id, "failed") and row(engine, task).run_id == first.run_id
    do(engine, lambda session, model: Durable(session).retry(model, task))
    [*_, new] = do(engine, lambda session, model: Durable(session).runs(model, task))
    assert (new.attempt, new.state) == (2, "pending")
    [second] = claim(engine)
    do(engine, lambda session, model: Durable(session).cancel(model, task))
    listed = do(engine, lambda session, model: Durable(session).runs(model, task))
    assert [(run.run_id, run.state) for run in listed] == [
        (first.run_id, "failed"),
        (second.run_id, "cancelled"),
    ]


def test_of_a_task_that_is_not_there_there_are_no_runs(client):
    with pytest.raises(TaskNotFound):
        client.durable.runs(MailTask, UUID(int=1))


# How many are ready


def test_ready_are_those_that_a_worker_could_claim_now(client, engine):
    with Session(engine) as session, session.begin():
        tasks = task_factory(MailTask, session)
        tasks.create_batch(3, pending=True, name="send")
        tasks.create_batch(2, due=True, name="send")
        tasks(pending=True, name="other")
        for state in ("sleeping", "running", "completed", "failed", "cancelled"):
            tasks(state=state, name="send")
        tasks(sleeping=True, available_at=None, name="send")  # until an event
        overdue = {"cancel_at": func.now() - HOUR, "name": "send"}
        tasks(pending=True, **overdue)
        tasks(due=True, **overdue)
        tasks(pending=True, cancel_at=func.now() + HOUR, name="late")
    count = client.durable.count_ready
    assert count(MailTask) == 7
    assert [count(MailTask, names) for names in (["send"], ["send", "other"], ["late"], ["none"], [])] == [
        5,
        6,
        1,
        0,
        0,
    ]
    assert [count(MailTask, limit=n) for n in (1, 6, 7, 8)] == [1, 6, 7, 7]
    assert count(MailTask, ["send"], limit=4) == 4 and count(BillingTask) == 0


@pytest.mark.owner
def test_of_a_paused_queue_none_is_ready(engine, session):
    spawn(engine, 2)
    paused = queue_factory(MailTask, session)(paused=True)
    assert Durable(session).count_ready(MailTask) == 0
    paused.paused_at = None
    session.flush()
    assert Durable(session).count_ready(MailTask) == 2


def test_counting_is_one_statement_and_what_is_ready_can_be_claimed(engine):
    tasks = spawn(engine, 3, cancellation=Cancellation(start_within=HOUR))
    change(engine, tasks[:1], cancel_at=func.now() - HOUR)
    with Session(engine) as session, statements(engine) as sent:
        assert Durable(session).count_ready(MailTask, ["send"]) == 2
    assert len(sent) == 1
    assert len(claim(engine, limit=10)) == 2


def test_a_count_that_cannot_work_is_refused(client):
    for wrong in ({"limit": 0}, {"limit": True}, {"names": "send"}):
        with pytest.raises(InvalidOptions):
            client.durable.count_ready(MailTask, **wrong)
