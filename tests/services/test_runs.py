"""How runs end: results, retries by policy, history, sleeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, func

from sa_durable import Exponential, Fixed, LeaseLost, NoRetry
from sa_durable.codec import NotJson
from sa_durable.policy import GiveUp, RetryAfter
from sa_durable.services import checkpoints, maintenance, runs
from sa_durable.values import TaskError
from tests.services.claiming import MINUTE, change, claim, do, history, row, spawn

pytestmark = pytest.mark.service

ERROR = TaskError("ValueError", "no", "Traceback ...")


# B5
def test_exponential_backoff_waits_40_and_90_seconds_then_fails(engine):
    backoff = Exponential(timedelta(seconds=40), 3, timedelta(seconds=90), jitter=0)
    [task] = spawn(engine, retry=backoff, max_attempts=3)
    for attempt, delay in ((1, 40), (2, 90)):
        [got] = claim(engine)
        assert do(engine, runs.fail, got, ERROR) == RetryAfter(timedelta(seconds=delay))
        waiting, run = row(engine, task), history(engine, task)[-1]
        assert (waiting.state, waiting.attempt, waiting.token) == ("sleeping", attempt + 1, 2 * attempt)
        assert (waiting.claimed_by, waiting.started_at, waiting.lease_expires_at) == (None, None, None)
        assert waiting.available_at - run.ended_at == timedelta(seconds=delay)
        assert (run.id, run.attempt, run.state, run.worker) == (got.run_id, attempt, "failed", "w1")
        assert waiting.run_id != got.run_id and waiting.error is None
        assert claim(engine) == []
        change(engine, [task], available_at=func.now())
        assert do(engine, maintenance.promote, limit=10).woken == 1
    [got] = claim(engine)
    assert do(engine, runs.fail, got, ERROR) == GiveUp()
    failed, past = row(engine, task), history(engine, task)
    assert (failed.state, failed.attempt, failed.run_id) == ("failed", 3, got.run_id)
    assert failed.error == past[-1].error == ERROR.to_json() and failed.finished_at == past[-1].ended_at
    assert [run.attempt for run in past] == [1, 2, 3]


# B5
def test_no_retry_and_non_retryable_errors_make_one_attempt(engine):
    for options, retryable in (({"retry": NoRetry()}, True), ({"max_attempts": None}, False)):
        [task] = spawn(engine, **options)
        [got] = claim(engine)
        assert do(engine, runs.fail, got, ERROR, retryable=retryable) == GiveUp()
        assert (row(engine, task).state, len(history(engine, task))) == ("failed", 1)


def test_a_retry_without_delay_is_ready_at_once(engine):
    [task] = spawn(engine, retry=Fixed(timedelta(0)), max_attempts=None)
    for attempt in range(1, 5):
        [got] = claim(engine)
        assert (got.attempt, got.resumed) == (attempt, attempt > 1)
        do(engine, runs.fail, got, ERROR)
        assert row(engine, task).state == "pending"
    assert len(history(engine, task)) == 4


def test_a_policy_that_cannot_be_read_or_waits_for_ever_strands_no_task(engine):
    absurd = [{"kind": "of the future"}, {"kind": "fixed", "delay_seconds": 86400 * 999999999.0}, "text"]
    for stored in absurd:
        [task] = spawn(engine)
        change(engine, [task], retry=stored)
        [got] = claim(engine)
        assert isinstance(do(engine, runs.fail, got, ERROR), RetryAfter)
        assert row(engine, task).state == "sleeping"
        change(engine, [task], state="cancelled")


def test_many_completions_are_one_statement_for_held_claims_only(engine):
    spawn(engine, 6)
    held = claim(engine, 6)
    sent = []
    listener = event.listens_for(engine, "before_cursor_execute")
    record = listener(lambda *args: sent.append(args[2]))
    try:
        done = [runs.Completed(c.task_id, c.token + (n == 0), "null") for n, c in enumerate(held[:3])]
        failed = [runs.Failed(c.task_id, c.token + (n == 0), ERROR, GiveUp()) for n, c in enumerate(held[3:])]
        assert do(engine, runs.complete_many, done).reached == {c.task_id for c in held[1:3]}
        assert do(engine, runs.fail_many, failed).reached == {c.task_id for c in held[4:]}
    finally:
        event.remove(engine, "before_cursor_execute", record)
    assert len(sent) == 2
    states = [row(engine, c.task_id).state for c in held]
    assert states == ["running", "completed", "completed", "running", "failed", "failed"]
    assert history(engine, held[3].task_id) == []


def test_a_result_of_none_is_stored_as_a_result(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    do(engine, runs.complete, got, None)
    done = row(engine, task)
    assert (done.state, done.result, done.lease_expires_at) == ("completed", None, None)
    do(engine, runs.complete, got, "again")  # as after a lost reply: the first result stays
    assert row(engine, task).result is None


# B27 (the worker's part: tests/runtime)
def test_what_json_cannot_hold_is_refused_before_anything_is_sent(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    for value in (float("nan"), "\0", {1: 2}, "\ud800"):
        with pytest.raises(NotJson):
            do(engine, runs.complete, got, value)
    assert row(engine, task).state == "running"


# B8
def test_after_a_suspension_the_first_workers_late_writes_are_rejected(engine):
    [task] = spawn(engine)
    [first] = claim(engine, worker="A")
    assert do(engine, runs.sleep, first, "$sleep", delay=MINUTE)
    asleep = row(engine, task)
    assert (asleep.state, asleep.attempt, asleep.run_id) == ("sleeping", 1, first.run_id)
    assert (asleep.claimed_by, asleep.lease_expires_at) == (None, None)
    for service, *args in (
        (checkpoints.save, first, "late", "1"),
        (runs.complete, first, "late"),
    ):
        with pytest.raises(LeaseLost):
            do(engine, service, *args)
    change(engine, [task], available_at=func.now())
    do(engine, maintenance.promote, limit=1)
    [second] = claim(engine, worker="B")
    assert (second.run_id, second.attempt, second.resumed) == (first.run_id, 1, True)
    for service, *args in (
        (checkpoints.save, first, "late", "1"),
        (runs.complete, first, "late"),
        (runs.fail, first, ERROR),
    ):
        with pytest.raises(LeaseLost):
            do(engine, service, *args)
    with pytest.raises(LeaseLost):
        do(engine, runs.sleep, first, "$sleep#2", delay=MINUTE)
    assert row(engine, task).state == "running"
    assert list(do(engine, checkpoints.load, [task])[task]) == ["$sleep"]


# B13
def test_sleep_keeps_its_first_time_by_the_databases_clock(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    assert do(engine, runs.sleep, got, "$sleep", delay=MINUTE)
    due = row(engine, task).available_at
    saved = do(engine, checkpoints.load, [task])[task]
    assert {name: datetime.fromisoformat(wake) for name, wake in saved.items()} == {"$sleep": due}
    change(engine, [task], state="pending")  # woken too early
    [again] = claim(engine)
    assert do(engine, runs.sleep, again, "$sleep", delay=timedelta(days=9))  # asleep again, until then
    assert row(engine, task).available_at == due
    change(engine, [task], state="pending")
    [third] = claim(engine)
    assert not do(engine, runs.sleep, third, "$sleep#2", until=datetime(2020, 1, 1, tzinfo=UTC))
    assert row(engine, task).state == "running"


def test_a_sleep_and_its_checkpoint_are_one_transaction(engine):
    [task] = spawn(engine)
    [got] = claim(engine)

    def interrupted(session, model) -> None:
        runs.sleep(session, model, got, "$sleep", delay=MINUTE)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        do(engine, interrupted)
    assert row(engine, task).state == "running" and do(engine, checkpoints.load, [task]) == {task: {}}
