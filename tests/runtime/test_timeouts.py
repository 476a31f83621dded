"""A handler's `timeout`: for one execution of it, whatever it does meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_durable.runtime.runs.stack import format_current_stack
from tests.runtime import context_app as app
from tests.runtime.conftest import working
from tests.runtime.context_app import Audit, VerbTask
from tests.waiting import wait_until

WHAT = "attempt 1 exceeded its timeout of 0.4 s"


@pytest.mark.parametrize("handler", [app.slow, app.aslow])
def test_attempt_that_takes_too_long_fails_and_is_retried(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        first, *_ = wait_until(lambda: verbs.runs(task_id))
        app.gate.set()
        task = verbs.ended(task_id)
        wait_until(
            lambda: len(app.seen) == 4
        )  # by then the first attempt says nothing more: the next test listens
    assert (first.state, first.error["type"], first.error["message"]) == ("failed", "HandlerTimeout", WHAT)
    assert first.error["fields"] == {"timeout_seconds": 0.4}
    assert first.error["traceback"].startswith("Timed out at:\n")
    assert (task.state, task.result) == ("completed", f"attempt {task.attempt}") and task.attempt > 1


WAITS = {"gate.wait(120)", "await asyncio.to_thread(gate.wait, 120)"}


@pytest.mark.parametrize(
    "handler",
    [app.stays, app.astays, app.stays_transactional, app.astays_transactional, app.stays_on_the_loop],
)
def test_stack_of_a_handler_starts_at_the_handler(verbs, handler):
    verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask) as worker:

        def there() -> list[str] | None:
            lines = [
                line for run in worker.parts.active.all() for line in format_current_stack(run).splitlines()
            ]
            return lines if any(line.strip() in WAITS for line in lines) else None

        place, line, *_ = wait_until(there)
        app.gate.set()
    assert place.endswith(f"in {handler.name}") and line.strip() in WAITS


def ended_after_timeout(verbs, task_id):
    """The task at its end. Its handler goes on once its first attempt has timed out."""
    wait_until(lambda: verbs.runs(task_id))
    app.gate.set()
    return verbs.ended(task_id)


@pytest.mark.parametrize("handler", [app.slow, app.aslow])
def test_timed_out_handler_writes_nothing_more_and_each_call_says_why(verbs, handler):
    """B28"""
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = ended_after_timeout(verbs, task_id)
        wait_until(lambda: len(app.seen) == 4)
    assert app.seen == [f"LeaseLost: task {task_id}: {WHAT}"] * 4
    assert verbs.steps(task_id) == {} and task.result != "attempt 1"


def test_sync_handler_keeps_its_slot_until_it_returns(verbs):
    slow = verbs.spawn(app.slow.call())
    with working(verbs.engine, VerbTask, concurrency=1, prefetch=0):
        wait_until(lambda: verbs.runs(slow))
        other = verbs.spawn(app.draws_transactional.call())
        assert verbs.task(other).state == "pending" and app.calls["slow"] == 1
        app.gate.set()
        assert [task.state for task in verbs.ended(slow, other)] == ["completed"] * 2


def test_a_handler_that_blocks_the_event_loop_is_timed_out_all_the_same(verbs):
    task_id = verbs.spawn(app.blocks_the_loop.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
        assert not app.gate.is_set()
        app.gate.set()
        other = verbs.spawn(app.adraws_transactional.call())
        assert verbs.ended(other).state == "completed"
    assert (task.state, task.error["type"]) == ("failed", "HandlerTimeout")
    assert verbs.task(task_id).result is None


@pytest.mark.parametrize("handler", [app.slow_transactional, app.aslow_transactional])
def test_a_transaction_that_takes_too_long_is_rolled_back(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = ended_after_timeout(verbs, task_id)
    assert (task.state, task.result) == ("completed", f"attempt {task.attempt}") and task.attempt > 1
    with Session(verbs.engine) as session:
        assert session.scalars(select(Audit.what)).all() == [task.result]


@pytest.mark.parametrize("handler", [app.naps, app.anaps])
def test_the_time_of_sleeps_does_not_count(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id, timeout=60)
    assert (task.state, task.result) == ("completed", 1)
    assert task.finished_at - task.first_started_at > timedelta(seconds=5)


def test_a_handlers_timeout_is_what_its_decorator_or_its_queue_says():
    assert app.slow.run_options.timeout == app.SHORT
    assert app.draws.run_options.timeout is None
    assert app.picky.run_options.non_retryable == (app.CardDeclined, KeyError)
    assert app.draws.run_options.non_retryable == (app.Closed,)
