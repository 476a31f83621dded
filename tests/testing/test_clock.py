"""The clock moves the time of a whole database, and puts everything back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import Cancellation, DurableTask, InvalidOptions
from sa_durable.services import claims
from sa_durable.testing import clock, task_factory
from tests.databases import throwaway
from tests.testing import app
from tests.testing.app import WEEK, MainTask, SideTask
from tests.testing.conftest import ROOT
from tests.waiting import wait_until

pytestmark = pytest.mark.service  # PostgreSQL and SQLAlchemy differ in much of what it builds on

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
NOW = text("SELECT statement_timestamp()")
REAL = text("SELECT pg_catalog.statement_timestamp()")


def seen(engine, statement=NOW):
    with engine.connect() as connection:
        return connection.scalar(statement)


def test_time_moves_and_freezes_and_resumes(engine):
    with clock(engine) as time:
        began = seen(engine, REAL)
        assert began <= time.now() <= seen(engine) <= began + MINUTE
        assert time.advance(HOUR) >= began + HOUR
        assert began + HOUR <= seen(engine) <= began + HOUR + MINUTE
        moment = datetime(2031, 2, 28, 23, 59, 59, 999_999, UTC)
        assert time.freeze(moment) == time.now() == seen(engine) == moment
        assert time.advance(timedelta(microseconds=1)) == seen(engine) == datetime(2031, 3, 1, tzinfo=UTC)
        assert time.move_to(moment) == seen(engine) == moment
        assert moment <= time.resume() < time.now() < moment + MINUTE
        assert time.advance(-365 * timedelta(days=5)) < moment
        frozen = time.freeze()
        assert frozen == time.now()
    assert began <= seen(engine) <= seen(engine, REAL)


@pytest.mark.parametrize("wrong", [datetime(2030, 1, 1), None, "tomorrow"])  # noqa: DTZ001 - that it is naive is the point
def test_a_moment_is_an_aware_datetime(engine, wrong):
    with clock(engine) as time, pytest.raises(InvalidOptions, match="aware"):
        time.move_to(wrong)


# B13
@pytest.mark.parametrize("handler", [app.naps, app.anaps])
def test_a_week_of_sleep_passes_in_one_run_and_sleeps_keep_their_times(helpers, handler):
    with clock(helpers.engine, helpers.tested) as time:
        spawned = helpers.spawn(handler.call())
        began = time.now()
        first = helpers.run().next_due
        assert began + WEEK <= first <= time.now() + WEEK
        time.move_to(first - MINUTE)
        assert helpers.run().runs == ()
        time.move_to(first)
        second = helpers.run().next_due
        assert first + 5 * MINUTE <= second <= time.now() + 5 * MINUTE
        time.move_to(second)
        assert [run.state for run in helpers.run().runs] == ["completed"]
        assert helpers.result(spawned).value == [1, 2, str(spawned.run_id), 1]
        [task] = helpers.rows(MainTask)
        assert second <= task.finished_at <= time.now() and task.token == 5  # three claims, two sleeps
    saved = {row.name: row.value for row in _checkpoints(helpers)}
    assert {name: datetime.fromisoformat(value) for name, value in saved.items() if name.startswith("$")} == {
        "$sleep": first,
        "$sleep#2": second,
    }


def _checkpoints(helpers):
    with Session(helpers.engine) as session:
        return session.query(MainTask.Checkpoint).all()


# B5
@pytest.mark.parametrize("handler", [app.hopeless, app.ahopeless])
def test_backoff_is_waited_for_in_no_time(helpers, handler):
    with clock(helpers.engine, helpers.tested) as time:
        spawned = helpers.spawn(handler.call())
        time.freeze()  # a run takes as long as it takes
        for delay in (40, 90):
            failed_before = time.now()
            due = helpers.run().next_due
            assert timedelta(0) <= due - failed_before - timedelta(seconds=delay) < MINUTE
            time.move_to(due - timedelta(seconds=1))
            assert helpers.run().runs == ()
            time.move_to(due)
        idle = helpers.run()
        assert (idle.remaining, [str(error) for error in idle.errors]) == ((), ["attempt 3"])
        assert (helpers.result(spawned).state, helpers.result(spawned).attempt) == ("failed", 3)


# B6
def test_a_task_that_fails_after_its_max_duration_is_cancelled(helpers):
    with clock(helpers.engine, helpers.tested) as time:
        spawned = helpers.spawn(
            app.hopeless.call(), cancellation=Cancellation(max_duration=timedelta(seconds=90))
        )
        time.freeze()
        due = helpers.run().next_due
        assert due == time.now() + timedelta(seconds=40)
        time.advance(timedelta(seconds=91))
        helpers.run()
        assert (helpers.result(spawned).state, helpers.result(spawned).error.type) == (
            "cancelled",
            "DeadlineExceeded",
        )
        time.advance(WEEK)
        assert helpers.run().runs == ()


# B6
def test_a_task_that_is_not_started_in_time_is_cancelled_before_it_runs(helpers):
    with clock(helpers.engine, helpers.tested) as time:
        late = helpers.spawn(app.plain.call(number=1), cancellation=Cancellation(start_within=HOUR))
        time.advance(HOUR + MINUTE)
        assert helpers.run(SideTask).runs == () and helpers.result(late).state == "pending"
        in_time = helpers.spawn(app.plain.call(number=1), cancellation=Cancellation(start_within=HOUR))
        with Session(helpers.engine) as session, session.begin():
            session.execute(text("INSERT INTO durable_queues (name, paused_at) VALUES ('main', now())"))
        assert helpers.run().runs == ()
        assert (helpers.result(late).state, helpers.result(in_time).state) == ("cancelled", "pending")


# B18
@pytest.mark.parametrize("handler", [app.waits_for, app.awaits_for])
def test_an_event_after_the_timeout_is_too_late(helpers, handler):
    with clock(helpers.engine, helpers.tested) as time:
        early, late = helpers.spawn(handler.call(name="early")), helpers.spawn(handler.call(name="late"))
        due = helpers.run().next_due
        helpers.emit("early", 1)
        helpers.run()
        time.move_to(due + HOUR)
        helpers.run()
        helpers.emit("late", 2)
        assert helpers.run().runs == ()
        assert (helpers.result(early).value, helpers.result(late).value) == (1, "too late")


# B19
@pytest.mark.parametrize("handler", [app.parent, app.aparent])
def test_a_parent_waits_a_week_for_its_children(helpers, handler):
    with clock(helpers.engine, helpers.tested) as time:
        spawned = helpers.spawn(handler.call())
        helpers.run()
        time.advance(WEEK)
        assert [run.name for run in helpers.run().runs] == ["child", "child", handler.name]
        assert helpers.result(spawned).value == [10, 20]


# B1
def test_a_lease_runs_out_and_the_late_worker_changes_nothing(helpers):
    with clock(helpers.engine, helpers.tested) as time:
        spawned = helpers.spawn(app.plain.call(number=1))
        with Session(helpers.engine) as session, session.begin():
            seconds = timedelta(seconds=30)
            [claim] = claims.claim(session, MainTask, names=["plain"], worker="w", lease=seconds, limit=1)
        assert helpers.run().runs == ()
        time.advance(5 * MINUTE)
        assert [(run.attempt, run.state) for run in helpers.run().runs] == [(2, "completed")]
        with Session(helpers.engine) as session, session.begin():
            assert claims.extend(session, MainTask, {claim.task_id: claim.token}, lease=seconds) == set()
            [lost] = session.get_one(MainTask, spawned.task_id).runs
            assert (lost.attempt, lost.worker, lost.error["type"]) == (1, "w", "LeaseExpired")
            assert lost.ended_at >= lost.started_at + 5 * MINUTE


def test_a_handler_can_move_the_time_past_its_own_lease(helpers):
    with clock(helpers.engine, helpers.tested) as time:

        @SideTask.handler()
        def travels(ctx) -> int:
            time.advance(WEEK)
            return ctx.step("after", lambda: ctx.attempt)

        try:
            spawned = helpers.spawn(travels.call())
            assert [run.state for run in helpers.run().runs] == ["completed"]
            assert helpers.result(spawned).value == 1
        finally:
            del SideTask.__handlers__["travels"]


# A9
def test_a_key_is_held_until_its_ttl_has_passed(helpers):
    options = {"idempotency_key": "k", "hold": "succeeded", "key_ttl": timedelta(days=1)}
    with clock(helpers.engine, helpers.tested) as time:
        first = helpers.spawn(app.plain.call(number=1), **options)
        helpers.run()
        time.advance(timedelta(hours=23))
        assert helpers.spawn(app.plain.call(number=1), **options).task_id == first.task_id
        time.advance(2 * HOUR)
        second = helpers.spawn(app.plain.call(number=1), **options)
        assert second.created and second.task_id != first.task_id


def test_rows_of_factories_have_the_moved_times(engine):
    with clock(engine) as time, Session(engine) as session:
        time.freeze(datetime(2040, 1, 1, tzinfo=UTC))
        task = task_factory(MainTask, session)(running=True)
        assert task.lease_expires_at == datetime(2040, 1, 1, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_pooled_connections_use_the_clock_only_in_its_block(engine, driver, testing_url):
    async def main() -> list[timedelta]:
        pool = create_async_engine(
            make_url(testing_url).set(drivername=f"postgresql+{driver}"), pool_size=1, max_overflow=0
        )

        async def ahead() -> timedelta:
            now, real = (await _ask(pool, NOW), await _ask(pool, REAL))
            return round((real - now) / -HOUR)

        found = [await ahead() for _ in range(8)]  # by then the statement is prepared
        for _ in range(2):
            with clock(pool) as time:
                time.advance(3 * HOUR)
                found += [await ahead() for _ in range(8)]
                time.advance(HOUR)
                found.append(await ahead())
            found += [await ahead() for _ in range(8)]
        await pool.dispose()
        return found

    assert asyncio.run(main()) == [0] * 8 + 2 * ([3] * 8 + [4] + [0] * 8)


async def _ask(engine, statement):
    async with engine.connect() as connection:
        return await connection.scalar(statement)


def test_other_processes_and_engines_of_the_database_see_the_moved_time(engine, testing_url):
    say = "import sys, sqlalchemy as s; e = s.create_engine(sys.argv[1]); print(e.connect().scalar(s.text('SELECT statement_timestamp()')).year)"
    with clock(testing_url) as time:
        time.freeze(datetime(2041, 1, 1, tzinfo=UTC))
        done = subprocess.run(
            [sys.executable, "-c", say, testing_url], check=True, capture_output=True, text=True, cwd=ROOT
        )
        assert done.stdout == "2041\n"
        other = create_engine(testing_url)
        assert seen(other) == time.now()
        other.dispose()


def test_everything_is_restored_even_after_an_error(engine):
    settings = text(
        "SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase "
        "WHERE datname = current_database()"
    )
    before = seen(engine, settings)
    with pytest.raises(ZeroDivisionError), clock(engine) as time:
        time.advance(WEEK)
        1 / 0  # noqa: B018 - the error
    assert "sa_durable_clock" not in inspect(engine).get_schema_names()
    assert (seen(engine, settings), seen(engine, text("SELECT current_schema()"))) == (before, "public")


def test_a_search_path_of_the_databases_user_is_kept(engine):
    with engine.begin() as connection:
        name = connection.scalar(text("SELECT quote_ident(current_database())"))
        alter = f"ALTER ROLE CURRENT_USER IN DATABASE {name}"
        connection.execute(text(f'{alter} SET search_path TO "Own", public'))
    engine.dispose()
    try:
        with clock(engine) as time:
            time.advance(WEEK)
            assert seen(engine) > seen(engine, REAL)
            assert seen(engine, text("SHOW search_path")) == '"Own", public, sa_durable_clock, pg_catalog'
        engine.dispose()
        assert seen(engine, text("SHOW search_path")) == '"Own", public'
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"{alter} RESET search_path"))
        engine.dispose()


def test_the_clock_of_a_killed_process_is_removed(engine, testing_url):
    leave = (
        "import os, sys, datetime; from sa_durable.testing import clock\n"
        "with clock(sys.argv[1]) as time: time.advance(datetime.timedelta(days=7)); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", leave, testing_url], check=True, cwd=ROOT)
    held = text(
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE locktype = 'advisory' AND datname = current_database()"
    )
    wait_until(lambda: not seen(engine, held), what="the server to notice")
    engine.dispose()
    assert seen(engine) > seen(engine, REAL) + HOUR
    with clock(engine) as time:
        assert time.now() < seen(engine, REAL)
    assert seen(engine) < seen(engine, REAL)
    engine.dispose()
    assert seen(engine, text("SHOW search_path")) == '"$user", public'


def test_there_is_one_clock_for_a_database_at_a_time(engine, testing_url):
    with clock(engine) as time:
        time.advance(WEEK)
        with (
            pytest.raises(InvalidOptions, match="another clock moves this database already"),
            clock(testing_url),
        ):
            pass
        assert seen(engine) > seen(engine, REAL)
    with pytest.raises(InvalidOptions, match="needs at least one engine"), clock():
        pass


def test_tables_made_during_the_block_keep_their_defaults(server_url):
    class Base(DeclarativeBase): ...

    class MeanwhileTask(DurableTask, Base):
        __queue__ = "meanwhile"

    def created_at(session):
        task = MeanwhileTask(name="x", params={})
        session.add(task)
        session.flush()
        return task.created_at

    with throwaway(server_url) as engine:
        with clock(engine) as time:
            time.advance(WEEK)
            Base.metadata.create_all(engine)
            with Session(engine) as session:
                assert created_at(session) > time.now() - MINUTE
        assert inspect(engine).has_table("durable_meanwhile_tasks", schema="public")
        columns = {c["name"]: c for c in inspect(engine).get_columns("durable_meanwhile_tasks")}
        assert columns["created_at"]["default"] == "statement_timestamp()"
        with Session(engine) as session:
            assert created_at(session) <= seen(engine, REAL)


def test_indexes_are_used_under_a_moved_clock(engine):
    with clock(engine) as time, engine.begin() as connection:
        time.advance(WEEK)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.scalars(
            text(
                "EXPLAIN SELECT id FROM durable_main_tasks WHERE state = 'sleeping' "
                "AND available_at <= statement_timestamp()"
            )
        ).all()
    assert any("Index Cond" in line and "interval" in line for line in plan), plan


def test_database_owner_can_move_its_time(server_url):
    name = f"plain_{uuid4().hex[:12]}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN"))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {name}"))
    engine = create_engine(make_url(server_url).set(username=name, database=name))
    try:
        with clock(engine) as time:
            time.advance(WEEK)
            assert seen(engine) > seen(engine, REAL) + HOUR
        engine.dispose()
        assert seen(engine) <= seen(engine, REAL)
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            connection.execute(text(f"DROP ROLE {name}"))
        admin.dispose()
