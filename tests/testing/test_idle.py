"""`run_until_idle` does all that workers do, in process, until there is nothing to do; through both clients."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sa_durable import Cancellation, InvalidOptions, UnknownQueue
from sa_durable.testing import NotIdle, run_until_idle, run_until_idle_async, task_factory
from tests.testing import app
from tests.testing.app import Effect, MainTask, SideTask
from tests.testing.conftest import Helpers
from tests.waiting import wait_until


@pytest.mark.parametrize("handler", [app.plain, app.coroutine])
def test_due_tasks_run_in_order_and_their_results_are_stored(helpers, handler):
    first, second = (
        helpers.spawn(handler.call(number=10)),
        helpers.spawn(handler.call(number=20), priority=-1),
    )
    idle = helpers.run()
    assert [(run.task_id, run.state, run.attempt) for run in idle.runs] == [
        (second.task_id, "completed", 1),
        (first.task_id, "completed", 1),
    ]
    assert (idle.remaining, idle.errors, idle.next_due) == ((), [], None)
    assert (helpers.result(second).value, helpers.result(first).value) == (21, 12)


def test_nothing_to_do_is_nothing_done(helpers):
    idle = helpers.run()
    assert (idle.runs, idle.remaining) == ((), ())


@pytest.mark.parametrize("handler", [app.naps, app.anaps])
def test_sleepers_are_left_asleep_and_their_due_times_are_listed(helpers, handler):
    spawned = helpers.spawn(handler.call())
    idle = helpers.run()
    [left] = idle.remaining
    assert (left.task_id, left.name, left.state, left.queue) == (
        spawned.task_id,
        handler.name,
        "sleeping",
        "main",
    )
    [task] = helpers.rows(MainTask)
    assert idle.next_due == left.due == task.available_at
    assert [run.state for run in idle.runs] == ["sleeping"]
    assert helpers.run().runs == ()


def test_what_is_due_next_is_listed_first(helpers):
    for days in (3, 1, 2):
        helpers.spawn(app.plain.call(number=days), delay=timedelta(days=days))
    helpers.spawn(app.waits_for.call(name="never"))
    left = helpers.run().remaining
    assert [task.due for task in left] == sorted(task.due for task in left)
    assert len(left) == 4


def test_a_retry_that_is_due_runs_and_one_that_is_not_waits(helpers):
    helpers.spawn(app.flaky.call())
    helpers.spawn(app.hopeless.call())
    idle = helpers.run()
    assert [(run.name, run.attempt, run.state, type(run.error)) for run in idle.runs] == [
        ("flaky", 1, "pending", TimeoutError),
        ("hopeless", 1, "sleeping", ConnectionError),
        ("flaky", 2, "completed", type(None)),
    ]
    assert [str(error) for error in idle.errors] == ["the first time", "attempt 1"]


@pytest.mark.parametrize("handler", [app.flaky, app.ahopeless])
def test_the_first_error_is_raised_on_request_once_it_is_stored(helpers, handler):
    spawned = helpers.spawn(handler.call())
    with pytest.raises((TimeoutError, ConnectionError), match=r"the first time|attempt 1") as raised:
        helpers.run(raise_errors=True)
    assert raised.traceback[-1].name == handler.name  # where it was raised
    assert helpers.result(spawned).attempt == 2


@pytest.mark.parametrize("handler", [app.waits_for, app.awaits_for])
def test_events_are_settled_and_wake_their_waiters(helpers, handler):
    spawned = helpers.spawn(handler.call(name="paid"))
    assert [run.state for run in helpers.run().runs] == ["sleeping"]
    helpers.spawn(app.emits.call(name="paid"))
    assert [run.name for run in helpers.run().runs] == ["emits", handler.name]
    assert helpers.result(spawned).value == {"by": "emits"}
    late = helpers.spawn(handler.call(name="paid"))
    helpers.run()
    assert helpers.result(late).value == {"by": "emits"}


def test_an_event_from_outside_wakes_its_waiter(helpers):
    spawned = helpers.spawn(app.waits_for.call(name="paid"))
    helpers.run()
    helpers.emit("paid", 7)
    helpers.emit("paid", 8)
    helpers.run()
    assert helpers.result(spawned).value == 7


@pytest.mark.parametrize("handler", [app.parent, app.aparent])
def test_children_in_another_queue_run_if_it_is_given(helpers, handler):
    spawned = helpers.spawn(handler.call())
    assert [run.name for run in helpers.run(MainTask).runs] == [handler.name]
    assert helpers.run(MainTask).runs == ()  # they are nobody's business here
    assert [run.name for run in helpers.run(MainTask, SideTask).runs] == ["child", "child"]
    assert helpers.result(spawned).state == "sleeping"


@pytest.mark.parametrize("handler", [app.writes, app.awrites, app.writes_whole])
def test_transactions_write_the_applications_rows(helpers, handler):
    helpers.spawn(handler.call(what="paid"))
    assert [run.state for run in helpers.run().runs] == ["completed"]
    assert [row.what for row in helpers.rows(Effect)] == ["paid"]


def test_sessions_of_transactions_come_from_the_factory(engine, helpers):
    helpers.spawn(app.writes.call(what="x"))
    made = []

    def sessions() -> Session:
        made.append(sessionmaker(engine)())
        return made[-1]

    assert helpers.run(session_factory=sessions).errors == []
    assert len(made) == 1


def test_a_lost_workers_task_is_swept_and_runs_again(helpers):
    with Session(helpers.engine) as session:
        lost = task_factory(MainTask, session)(name="plain", params={"number": 1}, lease_expired=True)
        task_id = lost.id
        session.commit()
    assert [(run.task_id, run.attempt, run.state) for run in helpers.run().runs] == [
        (task_id, 2, "completed")
    ]


def test_a_task_that_was_not_started_in_time_is_cancelled(helpers):
    late = helpers.spawn(app.plain.call(number=1), cancellation=Cancellation(start_within=timedelta(hours=1)))
    paused = text("INSERT INTO durable_queues (name, paused_at) VALUES ('main', now())")
    with helpers.engine.begin() as connection:
        connection.execute(paused)
    assert [task.state for task in helpers.run().remaining] == ["pending"]
    with helpers.engine.begin() as connection:
        connection.execute(update(MainTask.__table__).values(cancel_at=text("now() - interval '1 s'")))
    idle = helpers.run()
    assert (idle.runs, idle.remaining, helpers.result(late).state) == ((), (), "cancelled")


def test_unknown_names_are_left_pending(helpers):
    with Session(helpers.engine) as session:
        task_factory(MainTask, session)(name="of the next release")
        session.commit()
    idle = helpers.run()
    assert [(task.name, task.state, task.due) for task in idle.remaining] == [
        ("of the next release", "pending", None)
    ]
    assert idle.runs == ()


def test_a_task_that_spawns_itself_ends_in_a_clear_error(helpers):
    helpers.spawn(app.spawns_itself.call())
    with pytest.raises(NotIdle, match=r"not idle after 20 runs; ran: 20 x spawns_itself"):
        helpers.run(limit=20)
    tasks = helpers.rows(MainTask)
    assert [task.state for task in tasks] == ["completed"] * 20 + ["pending"]
    assert (tasks[-1].attempt, tasks[-1].claimed_by) == (1, None)


@pytest.mark.parametrize("handler", [app.hangs, app.ahangs])
def test_a_handler_that_hangs_is_released_with_a_clear_error(helpers, handler):
    spawned = helpers.spawn(handler.call())
    with pytest.raises(
        NotIdle, match=f"after 3 seconds; ran: nothing; still running: {handler.name}, attempt 1"
    ):
        helpers.run(timeout=3)
    app.gate.set()
    standing = helpers.result(spawned)
    assert (standing.state, standing.attempt) == ("pending", 1)


def test_a_handlers_own_timeout_ends_it(helpers):
    spawned = helpers.spawn(app.takes_too_long.call())
    assert [run.state for run in helpers.run().runs] == ["failed"]
    assert helpers.result(spawned).error.type == "HandlerTimeout"


def test_a_lock_of_the_tests_own_ends_in_a_clear_error(helpers):
    spawned = helpers.spawn(app.hangs.call())
    lock = text("SELECT 1 FROM durable_main_tasks FOR UPDATE")
    with helpers.engine.connect() as connection:
        app.gate.set()
        connection.execute(lock)
        assert helpers.run().runs == ()  # a locked task is passed over
        connection.rollback()
        connection.execute(text("LOCK TABLE durable_main_tasks"))
        with pytest.raises(NotIdle, match=r"after 0.3 seconds"):
            helpers.run(timeout=0.3)
    [run] = wait_until(
        lambda: helpers.run().runs
    )  # what waited for the lock may have claimed it, and gives it back
    assert (run.task_id, run.attempt, run.state) == (spawned.task_id, 1, "completed")


def test_a_pool_of_one_connection_is_enough(testing_url, helpers):
    small = create_engine(testing_url, pool_size=1, max_overflow=0, pool_timeout=60)
    for handler in (app.plain, app.coroutine):
        helpers.spawn(handler.call(number=1))
    helpers.spawn(app.parent.call())
    assert run_until_idle(small, MainTask).errors == []
    small.dispose()


def test_an_idle_run_needs_few_statements(engine):
    helpers, statements = Helpers(engine, engine, None), []

    def note(_conn, _cursor, statement, *_: object) -> None:
        if not statement.startswith("DISCARD"):  # plans, where a statement was slow
            statements.append(statement)

    def asked(calls: int) -> int:
        for n in range(calls):
            helpers.spawn(app.plain.call(number=n))
        statements.clear()
        event.listen(engine, "before_cursor_execute", note)
        assert len(run_until_idle(engine, MainTask).runs) == calls
        event.remove(engine, "before_cursor_execute", note)
        return len(statements)

    once = asked(1)
    assert once <= 20  # with the last look, which finds nothing
    assert asked(11) - once == 10 * 4  # claim, the step, the outcome, the state


def test_a_url_will_do(helpers, testing_url):
    helpers.spawn(app.plain.call(number=1))
    assert len(run_until_idle(testing_url, MainTask).runs) == 1


def test_what_cannot_work_is_refused(engine, testing_url):
    async def inside() -> None:
        run_until_idle(engine, MainTask)

    with pytest.raises(InvalidOptions, match="run_until_idle_async"):
        asyncio.run(inside())
    with pytest.raises(InvalidOptions, match="run_until_idle_async"):
        run_until_idle(create_async_engine(testing_url), MainTask)
    for queues in ((), (Effect,)):
        with pytest.raises(UnknownQueue):
            run_until_idle(engine, *queues)
        with pytest.raises(UnknownQueue):
            asyncio.run(run_until_idle_async(engine, *queues))
