"""B22, through a worker: what was retried runs again."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func
from sqlalchemy.orm import Session

from sa_durable import Cancellation, Durable, TaskState
from tests.runtime import app
from tests.runtime.app import WorkTask
from tests.runtime.conftest import working
from tests.waiting import wait_until

HOUR = timedelta(hours=1)


def retry(engine, task, **options):
    with Session(engine) as session, session.begin():
        return Durable(session).retry(WorkTask, task, **options)


def runs(engine, task):
    with Session(engine) as session:
        return [(run.attempt, run.state.value) for run in Durable(session).runs(WorkTask, task)]


def test_retried_task_keeps_its_checkpoints_and_a_new_one_starts_over(engine, shop):
    task = shop.spawn(app.flaky.call(failures=2), max_attempts=2)
    with working(engine):
        assert shop.ended(task).state == "failed" and app.calls["pair"] == 1
        new = retry(engine, task, as_new=True)
        assert shop.ended(new.task_id).state == "failed" and app.calls["pair"] == 2
        again = retry(engine, task)
        assert (again.attempt, again.state) == (3, TaskState.PENDING)
        done = shop.ended(task)
    assert (done.state, done.result, done.attempt, app.calls["pair"]) == ("completed", 3, 3, 2)
    assert runs(engine, task) == [(1, "failed"), (2, "failed"), (3, "completed")]
    assert runs(engine, new.task_id) == [(1, "failed"), (2, "failed")]


def test_retry_restarts_an_expired_max_duration(engine, shop):
    task = shop.spawn(app.naps.call(seconds=3600), cancellation=Cancellation(max_duration=HOUR))
    with working(engine, sweep_interval=timedelta(seconds=0.05)):
        shop.state_is(task, "sleeping")
        shop.set(task, cancel_at=func.now() - HOUR)
        assert shop.ended(task).error["type"] == "DeadlineExceeded"
        retry(engine, task)
        asleep = shop.state_is(task, "sleeping")
    assert asleep.cancel_at > asleep.started_at + HOUR / 2 and runs(engine, task)[-1] == (2, "sleeping")
    assert app.calls == {"naps": 2, "first": 1}


def test_worker_of_a_cancelled_run_cannot_write_to_its_retry(engine, shop):
    task = shop.spawn(app.waits_then_steps.call())
    with working(engine, concurrency=2):
        wait_until(lambda: app.calls["inside"] == 1)
        with Session(engine) as session, session.begin():
            Durable(session).cancel(WorkTask, task)
            Durable(session).retry(WorkTask, task)
        wait_until(lambda: app.calls["inside"] == 2)
        app.gate.set()
        done = shop.ended(task)
        wait_until(lambda: app.seen)
    assert (done.state, done.attempt) == ("completed", 2)
    assert app.seen == ["LeaseLost"]  # the second one, whatever the first one wrote
