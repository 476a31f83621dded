"""Waiting from outside for how a task ends."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_durable import Durable, InvalidOptions, TaskNotFound, TaskState, TimedOut, wait_for, wait_for_async
from sa_durable.runtime.tuning import Tuning
from tests.runtime import app
from tests.runtime.app import WorkTask
from tests.runtime.conftest import working
from tests.waiting import in_thread, wait_until

LONG = timedelta(minutes=5)
SHORT = timedelta(milliseconds=100)


@pytest.fixture(params=["psycopg", "psycopg async", "asyncpg"])
def wait(request, engine, runtime_url) -> Callable:
    """wait_for through each kind of engine, with a pool of one connection; returns what it returns."""
    if request.param == "psycopg":

        def wait(*what, timeout=LONG, **options):
            one = create_engine(runtime_url, pool_size=1, max_overflow=0, pool_timeout=60)
            try:
                return wait_for(one, *what, timeout=timeout, **options)
            finally:
                one.dispose()

        return wait

    driver = {"psycopg async": "postgresql+psycopg", "asyncpg": "postgresql+asyncpg"}[request.param]

    async def awaited(*what, timeout, **options):
        one = create_async_engine(make_url(runtime_url).set(drivername=driver), pool_size=1, max_overflow=0)
        try:
            return await wait_for_async(one, *what, timeout=timeout, **options)
        finally:
            await one.dispose()

    return lambda *what, timeout=LONG, **options: asyncio.run(awaited(*what, timeout=timeout, **options))


def listeners(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(
            text(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE query = 'LISTEN sa_durable_ended' AND datname = current_database()"
            )
        )


def waited_for(shop, task_id) -> None:
    """Until somebody has marked the task and listens."""
    wait_until(lambda: shop.task(task_id).awaited and listeners(shop.engine))


def test_a_task_that_completes_gives_its_result(engine, shop, wait):
    with Session(engine) as session, session.begin():
        spawned = Durable(session).spawn(app.double.call(number=4))
    with working(engine):
        done = wait(spawned)
    assert (done.task_id, done.state, done.value, done.error) == (spawned.task_id, "completed", 8, None)
    assert wait(spawned) == wait(WorkTask, spawned.task_id) == wait(shop.task(spawned.task_id)) == done


@pytest.mark.direct(reason="LISTEN")
def test_a_task_that_fails_gives_its_error_and_a_cancelled_one_its_state(engine, shop, wait):
    failed, cancelled = shop.spawn(app.once.call()), shop.spawn(app.double.call(number=1), delay=LONG)
    with working(engine):
        assert wait(WorkTask, failed).error.message == "once is enough"
        waiting = in_thread(wait, WorkTask, cancelled)
        waited_for(shop, cancelled)
        with Session(engine) as session, session.begin():
            Durable(session).cancel(WorkTask, cancelled)
        assert waiting.result(60).state is TaskState.CANCELLED


@pytest.mark.direct(reason="LISTEN")
@pytest.mark.parametrize("notify", [True, False])
def test_end_is_notified_by_a_worker_without_notifications(engine, shop, wait, notify):
    seldom = Tuning(first_result_pause_s=60.0, longest_result_pause_s=60.0)
    task = shop.spawn(app.double.call(number=1))
    waiting = in_thread(wait, WorkTask, task, _tuning=seldom)
    waited_for(shop, task)
    with working(engine, notify=notify):
        assert waiting.result(60).value == 2


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_end_is_seen_by_polling_where_listening_is_impossible(engine, shop, runtime_url, kind):
    task = shop.spawn(app.double.call(number=1))

    def wait() -> object:
        if kind == "plain":
            return wait_for(engine, WorkTask, task, timeout=LONG, notify=False)

        async def awaited() -> object:
            one = create_async_engine(runtime_url)
            try:
                return await wait_for_async(one, WorkTask, task, timeout=LONG, notify=False)
            finally:
                await one.dispose()

        return asyncio.run(awaited())

    waiting = in_thread(wait)
    with working(engine):
        assert waiting.result(60).value == 2
    assert not shop.task(task).awaited
    wait_until(lambda: listeners(engine) == 0)  # until: a connection of the test before may still be closing


@pytest.mark.direct(reason="LISTEN")
def test_without_any_notification_the_end_is_seen_by_polling(engine, shop, wait, monkeypatch):
    monkeypatch.setattr("sa_durable.runtime.results.ENDED", "elsewhere")
    task = shop.spawn(app.double.call(number=1))
    waiting = in_thread(wait, WorkTask, task)
    wait_until(lambda: shop.task(task).awaited)
    with working(engine):
        assert waiting.result(60).value == 2


def test_timed_out_wait_reports_the_state_and_the_task_goes_on(engine, shop, wait):
    task = shop.spawn(app.double.call(number=1))
    for timeout in (timedelta(0), SHORT):
        with pytest.raises(TimedOut, match="still pending") as late:
            wait(WorkTask, task, timeout=timeout)
        assert late.value.state is pickle.loads(pickle.dumps(late.value)).state is TaskState.PENDING
    with working(engine):
        assert wait(WorkTask, task).value == 2


def test_a_task_that_is_not_there_and_a_negative_timeout_are_refused(engine, wait):
    with pytest.raises(TaskNotFound):
        wait(WorkTask, uuid4())
    with pytest.raises(InvalidOptions):
        wait(WorkTask, uuid4(), timeout=-SHORT)


def test_locked_task_blocks_no_waiter(engine, shop, wait):
    task = shop.spawn(app.double.call(number=1))
    with Session(engine) as locks:
        locks.get(WorkTask, task, with_for_update=True)
        with pytest.raises(TimedOut):
            wait(WorkTask, task, timeout=SHORT)
        waiting = in_thread(wait, WorkTask, task)
    with working(engine):
        assert waiting.result(60).value == 2


@pytest.mark.direct(reason="LISTEN")
def test_while_it_waits_the_pools_only_connection_is_free(engine, shop, runtime_url):
    one = create_engine(runtime_url, pool_size=1, max_overflow=0, pool_timeout=60)
    task = shop.spawn(app.double.call(number=1))
    waiting = in_thread(wait_for, one, WorkTask, task, timeout=LONG)
    waited_for(shop, task)
    with one.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert not waiting.done()
    with working(engine):
        assert waiting.result(60).value == 2
    one.dispose()


@pytest.mark.direct(reason="LISTEN")
def test_waiters_of_one_engine_share_a_connection(engine, shop):
    tasks = [shop.spawn(app.double.call(number=n)) for n in range(5)]
    waiting = [in_thread(wait_for, engine, WorkTask, task, timeout=LONG) for task in tasks]
    # Until: a connection of the test before may still be closing.
    wait_until(lambda: all(shop.task(task).awaited for task in tasks) and listeners(engine) == 1)
    with working(engine):
        assert [w.result(60).value for w in waiting] == [0, 2, 4, 6, 8]
    wait_until(lambda: listeners(engine) == 0)
