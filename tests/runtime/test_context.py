"""The smaller verbs of both contexts: values that are remembered, heartbeats, the current context, begun steps."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Durable, NoContext, TaskContext, current_context
from tests.runtime import context_app as app
from tests.runtime.conftest import working
from tests.runtime.context_app import Audit, VerbTask
from tests.waiting import wait_until


@pytest.mark.parametrize("handler", [app.draws, app.adraws])
def test_now_random_and_uuid7_are_the_same_on_replay(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    first, second = app.seen
    assert first == second and task.attempt == 2
    now, number, uuid, later, other_number, other_uuid = first
    assert now.tzinfo is UTC and task.first_started_at <= now < later <= task.finished_at
    assert 0 <= number < 1 and 0 <= other_number < 1 and number != other_number
    assert isinstance(uuid, UUID) and uuid.version == 7 and uuid < other_uuid
    names = {"$now", "$now#2", "$random", "$random#2", "$uuid7", "$uuid7#2"}
    assert verbs.steps(task_id).keys() == names


@pytest.mark.parametrize("handler", [app.draws_transactional, app.adraws_transactional])
def test_a_transactional_handler_draws_too_and_remembers_nothing(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    ((now, number, uuid),) = app.seen
    assert task.state == "completed"
    assert now.tzinfo is UTC and task.first_started_at <= now <= task.finished_at
    assert 0 <= number < 1 and uuid.version == 7
    assert verbs.steps(task_id) == {}


@contextmanager
def beating(verbs, handler, **options):
    """A task whose handler sends heartbeats, in a worker whose own come every 15 minutes."""
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask, lease=timedelta(hours=1), **options):
        wait_until(lambda: app.calls["inside"])
        yield task_id


@pytest.mark.parametrize("handler", [app.beats, app.abeats])
def test_a_heartbeat_extends_the_lease_now(verbs, handler):
    with beating(verbs, handler) as task_id:
        first = verbs.task(task_id).lease_expires_at
        wait_until(lambda: verbs.task(task_id).lease_expires_at > first)
        app.gate.set()
        assert verbs.ended(task_id).result == "done"


@pytest.mark.parametrize("handler", [app.beats, app.abeats])
def test_heartbeat_reports_cancellation_and_frees_the_slot(verbs, handler):
    """B7"""
    with beating(verbs, handler, concurrency=1) as task_id:
        with Session(verbs.engine) as session, session.begin():
            assert Durable(session).cancel(VerbTask, task_id)
        wait_until(lambda: app.seen)
        after = verbs.spawn(app.draws_transactional.call())
        assert verbs.ended(after).state == "completed"
    assert app.seen[0] in ("Cancelled", "CancelledError")  # an async handler is cancelled where it awaits
    assert verbs.task(task_id).state == "cancelled"
    assert verbs.steps(task_id) == {}


@pytest.mark.parametrize("handler", [app.beats, app.abeats])
def test_a_heartbeat_tells_that_another_worker_has_the_task(verbs, handler):
    with beating(verbs, handler) as task_id:
        verbs.set(task_id, token=verbs.task(task_id).token + 1)
        wait_until(lambda: app.seen)
    assert app.seen[0] in ("LeaseLost", "CancelledError")
    assert verbs.steps(task_id) == {}


@pytest.mark.parametrize("handler", [app.looks, app.alooks])
def test_the_current_context_is_the_handlers_from_anywhere_below_it(verbs, handler):
    first, second = verbs.spawn(handler.call()), verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask, concurrency=1):
        tasks = verbs.ended(first, second)
    for task in tasks:
        found = dict(task.result)
        assert found.pop("variable") == "unset"  # nothing leaks from one run to the next
        assert found.pop("thread") is False  # a thread of one's own inherits no context variables
        assert found and all(found.values()), found


def test_context_variables_do_not_leak_between_runs(verbs):
    ids = [verbs.spawn(handler.call()) for handler in (app.looks, app.alooks) * 3]
    with working(verbs.engine, VerbTask, concurrency=1):
        assert {task.result["variable"] for task in verbs.ended(*ids)} == {"unset"}


@pytest.mark.parametrize("handler", [app.looks_transactional, app.alooks_transactional])
def test_the_current_context_of_a_transactional_handler_has_its_session(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        assert verbs.ended(task_id).result is True
    with Session(verbs.engine) as session:
        assert session.scalar(select(func.count()).select_from(Audit)) == 1


def test_there_is_no_current_context_outside_of_a_handler():
    with pytest.raises(NoContext, match="no handler runs here"):
        current_context()
    with pytest.raises(LookupError):
        current_context(TaskContext)


def test_a_context_of_the_other_kind_is_refused(verbs):
    task_id = verbs.spawn(app.asks_for_the_other_kind.call())
    with working(verbs.engine, VerbTask):
        assert (
            "current_context(AsyncTaskContext): the handler that runs here has a TaskContext"
            in verbs.ended(task_id).result
        )


@pytest.mark.parametrize("handler", [app.begins, app.abegins])
def test_a_begun_step_is_done_on_replay_and_has_its_typed_value(verbs, handler):
    """B10, B12"""
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert app.seen == [[False, False, False], [True, False, True]]
    one, two = app.Receipt(7, app.Decimal("1.50")), app.Receipt(8, app.Decimal(2))
    assert task.result == [str(one), str(two), [1, None], True]
    assert verbs.steps(task_id).keys() == {"pay", "pay#2", "untyped"}


@pytest.mark.parametrize("handler", [app.misuses, app.amisuses])
def test_a_step_is_completed_once_by_the_run_that_began_it(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    *early, twice, done_elsewhere, foreign = app.seen
    assert early == ["StepMisuse", "InvalidResult", "DeclarationError"]
    assert "step 'pay': is done already" in twice
    assert "to another execution" in done_elsewhere and "to another execution" in foreign
    assert task.result == [7]
    assert verbs.steps(task_id) == {"pay": {"number": 7, "total": "1"}}
