"""What a worker does with tasks: results, retries, steps, sleeps."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidOptions, UnknownQueue
from sa_durable.runtime import Worker
from sa_durable.testing import clock
from tests.runtime import app
from tests.runtime.app import OtherTask, WorkTask
from tests.runtime.conftest import working
from tests.waiting import wait_until


def test_sync_and_async_handlers_of_two_queues_store_their_results(engine, shop):
    doubled, tripled = shop.spawn(app.double.call(number=4)), shop.spawn(app.triple.call(number=4))
    named = shop.spawn(app.other.call())
    with working(engine, WorkTask, OtherTask):
        assert [task.result for task in shop.ended(doubled, tripled)] == [8, 12]
        assert shop.ended(named, model=OtherTask).result == "other.other"
    done = shop.task(doubled)
    assert (done.state, done.attempt, done.token, done.error) == ("completed", 1, 1, None)
    assert done.created_at <= done.first_started_at == done.started_at <= done.finished_at
    assert done.claimed_by and done.lease_expires_at is None and shop.runs(doubled) == []


@pytest.mark.parametrize(
    "make", ["url", "asyncpg", "psycopg_async", "repeatable_read", "serializable_option", "autocommit_option"]
)
def test_a_worker_takes_a_url_or_any_engine(engine, shop, runtime_url, make):
    source = {
        "url": lambda: runtime_url.replace("+psycopg", ""),
        "asyncpg": lambda: create_async_engine(runtime_url.replace("+psycopg", "+asyncpg")),
        "psycopg_async": lambda: create_async_engine(runtime_url),
        "repeatable_read": lambda: create_engine(runtime_url, isolation_level="REPEATABLE READ", pool_size=1),
        "serializable_option": lambda: create_engine(runtime_url).execution_options(
            isolation_level="SERIALIZABLE"
        ),
        "autocommit_option": lambda: create_engine(runtime_url).execution_options(
            isolation_level="AUTOCOMMIT"
        ),
    }[make]()
    task = shop.spawn(app.triple.call(number=2))
    with working(source):
        assert shop.ended(task).result == 6


def test_a_worker_runs_inside_an_event_loop_of_the_applications_own(engine, shop):
    async def main() -> list[object]:
        async with Worker(engine, [WorkTask]):
            first = await asyncio.to_thread(shop.spawn, app.double.call(number=1))
            await asyncio.to_thread(shop.ended, first)
        async with Worker(engine, [WorkTask]):  # another one, after the first has stopped
            second = await asyncio.to_thread(shop.spawn, app.double.call(number=2))
            return [task.result for task in await asyncio.to_thread(shop.ended, first, second)]

    assert asyncio.run(main()) == [2, 4]


def test_what_cannot_work_is_refused_when_the_worker_is_made(engine):
    for wrong in ({"concurrency": 0}, {"concurrency": True}, {"prefetch": -1}, {"lease": timedelta(0)}):
        with pytest.raises(InvalidOptions):
            Worker(engine, [WorkTask], **wrong)
    for queues in ([], [int]):
        with pytest.raises(UnknownQueue):
            Worker(engine, queues)


# B10, B11
@pytest.mark.parametrize("handler", [app.flaky, app.aflaky])
def test_finished_step_never_runs_again_and_is_decoded_at_once(engine, shop, handler):
    task = shop.spawn(handler.call(failures=2))
    with working(engine):
        assert shop.ended(task).result == 3
    assert app.calls == {"pair": 1, "receipt": 1, "nothing": 1}
    assert app.seen == 3 * [[1, 2], app.Receipt(7, app.Decimal("1.50")), None]
    assert [(run.attempt, run.state, run.error["type"]) for run in shop.runs(task)] == [
        (1, "failed", "ConnectionError"),
        (2, "failed", "ConnectionError"),
    ]


# B11
def test_a_step_that_raised_left_nothing_and_runs_again(engine, shop):
    task = shop.spawn(app.broken_step.call())
    with working(engine):
        assert shop.ended(task).result == "fine"
    assert app.calls == {"broken": 2} and shop.steps(task) == {"broken": "fine"}


# B12
def test_a_repeated_step_name_is_numbered_and_the_same_on_replay(engine, shop):
    task = shop.spawn(app.repeated.call())
    with working(engine):
        assert shop.ended(task).result == [10, 20, 30]
    assert app.seen == [[10, 20, 30], [10, 20, 30]] and app.calls == {"k": 3}
    assert shop.steps(task) == {"k": 10, "k#2": 20, "k#3": 30}


def test_steps_of_one_handler_run_at_the_same_time(engine, shop):
    task = shop.spawn(app.together.call())
    with working(engine):
        assert shop.ended(task).result == list(range(8))
    assert len(shop.steps(task)) == 8


# B5, through a worker (the delays themselves: tests/services/test_runs.py)
@pytest.mark.owner
@pytest.mark.direct(reason="sa_durable.testing.clock moves the time of sessions")
def test_retries_back_off_and_end_as_failed_with_every_run_in_the_history(engine, shop, caplog):
    caplog.set_level(logging.INFO, "sa_durable.worker")
    with clock(engine) as time, working(engine):
        task = shop.spawn(app.hopeless.call())
        for attempt, delay in ((1, 40), (2, 90)):
            wait_until(lambda: shop.task(task).state == "sleeping" and len(shop.runs(task)) == attempt)  # noqa: B023 - called before the loop goes on
            due = shop.task(task).available_at
            assert due - shop.runs(task)[-1].ended_at == timedelta(seconds=delay)
            time.move_to(due)
        failed = shop.ended(task)
    runs = shop.runs(task)
    assert (failed.state, failed.attempt, len(runs)) == ("failed", 3, 3)
    assert len({run.id for run in runs}) == 3 and failed.run_id == runs[-1].id
    assert failed.error == runs[-1].error and failed.finished_at == runs[-1].ended_at
    assert failed.error["type"] == "RuntimeError" and len(failed.error["message"]) <= 4096
    assert (
        "in hopeless" in failed.error["traceback"] and "sa_durable/runtime" not in failed.error["traceback"]
    )
    assert all(run.worker and run.started_at and run.lease_expires_at for run in runs)
    assert "RuntimeError" in caplog.text and "xxx" not in caplog.text


# B5
def test_retry_none_is_one_attempt(engine, shop):
    task = shop.spawn(app.once.call())
    with working(engine):
        assert shop.ended(task).state == "failed"
    assert shop.task(task).attempt == len(shop.runs(task)) == 1


# B13
@pytest.mark.owner
@pytest.mark.direct(reason="sa_durable.testing.clock moves the time of sessions")
def test_a_sleep_resumes_the_same_run_and_attempt_and_is_not_slept_again(engine, shop):
    with clock(engine) as time, working(engine):
        task = shop.spawn(app.naps.call(seconds=300))
        before = shop.task(task).run_id
        for sleeps in (1, 2):
            # In this order: else its state may be from before it woke.
            wait_until(lambda: app.calls["naps"] == sleeps and shop.task(task).state == "sleeping")  # noqa: B023 - as above
            asleep = shop.task(task)
            assert (asleep.attempt, asleep.claimed_by, asleep.lease_expires_at) == (1, None, None)
            time.move_to(asleep.available_at)
        assert shop.ended(task).result == [1, str(before), 1]
    assert sorted(shop.steps(task)) == ["$sleep", "$sleep#2", "first"] and shop.runs(task) == []
    assert app.calls["first"] == 1


def test_a_short_sleep_wakes_when_it_is_due_and_not_at_the_next_poll(engine, shop):
    task = shop.spawn(app.anaps.call(seconds=0.05))
    with working(engine, poll_interval=timedelta(minutes=10)):
        assert shop.ended(task).result == 1


# B24
def test_tasks_of_unknown_names_stay_until_a_worker_knows_them(engine, shop):
    task, known = shop.spawn(app.double.call(number=1)), shop.spawn(app.triple.call(number=1))
    handler = WorkTask.__handlers__.pop("double")
    try:
        with working(engine):
            shop.ended(known)
            unharmed = shop.task(task)
            assert (unharmed.state, unharmed.attempt, unharmed.token) == ("pending", 1, 0)
            WorkTask.__handlers__["double"] = handler  # a worker of the next release
            assert shop.ended(task).result == 2
    finally:
        WorkTask.__handlers__["double"] = handler


# B27
def test_result_that_json_cannot_store_fails_the_task_at_once(engine, shop):
    task = shop.spawn(app.unstorable.call())
    with working(engine):
        failed = shop.ended(task)
    assert (failed.state, failed.attempt, failed.error["type"]) == ("failed", 1, "InvalidResult")
    assert "nan" in failed.error["message"] and app.calls == {"unstorable": 1}


def test_params_that_no_longer_fit_fail_the_task_at_once(engine, shop):
    ids = [shop.spawn(app.double.call(number=1)) for _ in range(3)]
    with engine.begin() as connection:
        texts = ['{"number": "many"}', '{"number": %s}' % ("9" * 5000), "[1]"]
        for task_id, params in zip(ids, texts, strict=True):
            connection.execute(
                text("UPDATE durable_work_tasks SET params = cast(:p AS jsonb) WHERE id = :i"),
                {"p": params, "i": task_id},
            )
    ends = text("SELECT state, attempt, error ->> 'type' FROM durable_work_tasks")
    with working(engine), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(
            lambda: {tuple(row) for row in connection.execute(ends)} == {("failed", 1, "InvalidParams")}
        )


def test_a_handler_that_exits_fails_and_the_worker_goes_on(engine, shop):
    task = shop.spawn(app.leaves.call(), max_attempts=1)
    with working(engine):
        assert shop.ended(task).error["type"] == "SystemExit"
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6


# B28
def test_a_swallowed_suspend_is_final_nothing_more_is_written(engine, shop):
    task = shop.spawn(app.swallows.call())
    with working(engine):
        wait_until(lambda: len(app.seen) == 2)
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6
    assert app.seen == ["Suspend", "Suspend"] and app.calls == {}
    assert shop.task(task).state == "sleeping" and list(shop.steps(task)) == ["$sleep"]


# B28, B7
def test_a_swallowed_cancellation_is_final_and_the_slot_survives(engine, shop, quick_beats):
    task = shop.spawn(app.aswallows.call())
    with working(engine, concurrency=1, _tuning=quick_beats):
        wait_until(lambda: app.calls["aswallows"])
        with Session(engine) as session, session.begin():
            Durable(session).cancel(WorkTask, task)
        wait_until(lambda: len(app.seen) == 2)
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6
    assert app.seen == ["CancelledError", "Cancelled"] and app.calls["late"] == 0
    assert shop.task(task).state == "cancelled" and shop.steps(task) == {}


# B23
def test_concurrency_is_never_exceeded_and_a_freed_slot_refills_at_once(engine, shop):
    slow = shop.spawn(app.waits.call(label="slow"))
    with working(engine, concurrency=2, poll_interval=timedelta(minutes=10)) as worker:
        wait_until(lambda: app.calls["slow"])
        quick = [shop.spawn(app.quick.call(label=f"quick {n}")) for n in range(20)]
        worker.parts.tasks_ready.set()  # as a notification will
        assert {task.state for task in shop.ended(*quick)} == {"completed"}  # in one slot, without a poll
        assert shop.task(slow).state == "running" and app.crowd.most == 2


def test_a_thousand_tasks_are_each_run_once(engine, shop, monkeypatch):
    ran: list[int] = []

    async def double(_: object, number: int) -> None:
        ran.append(number)

    def triple(_: object, number: int) -> None:
        ran.append(number)

    monkeypatch.setattr(app.double, "fn", double)
    monkeypatch.setattr(app.triple, "fn", triple)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO durable_work_tasks (id, name, params, run_id) SELECT gen_random_uuid(), "
                "CASE WHEN i % 4 = 0 THEN 'triple' ELSE 'double' END, jsonb_build_object('number', i), "
                "gen_random_uuid() FROM generate_series(1, 1000) i"
            )
        )
    completed = select(func.count()).select_from(WorkTask).where(WorkTask.state == "completed")
    with working(engine), Session(engine) as session:
        wait_until(lambda: session.scalar(completed) == 1000)
        assert session.scalar(select(func.max(WorkTask.attempt))) == 1
    # Not by their tokens: what waits for a slot while the machine stands still is given back, and claimed again.
    assert sorted(ran) == list(range(1, 1001))


@pytest.mark.owner
def test_a_worker_outlives_the_loss_of_its_connections(engine, shop):
    with working(engine):
        shop.ended(shop.spawn(app.double.call(number=1)))
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        engine.dispose()
        assert shop.ended(shop.spawn(app.flaky.call(failures=1))).result == 2
