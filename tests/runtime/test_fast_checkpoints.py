"""Checkpoints saved the short way: the same values and the same fence as the long way has, or no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from sa_durable import Durable, LeaseLost
from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.connections.engines import settings_of
from sa_durable.runtime.connections.plan_cache import PlanCache
from sa_durable.runtime.context.checkpoint_saver import CheckpointSaver
from sa_durable.runtime.context.operations import CONTEXT_THREADS, DaemonThreadPool
from sa_durable.runtime.context.steps import Steps
from sa_durable.runtime.runs.active import ActiveRun
from sa_durable.runtime.threads.wakeup import Wakeup
from sa_durable.runtime.tuning import DEFAULT_TUNING
from sa_durable.services import checkpoints, claims
from tests.runtime.app import WorkTask
from tests.waiting import in_thread, wait_until_blocked, wait_until_gone

pytestmark = [pytest.mark.service, pytest.mark.direct(reason="prepared statements of our own")]
MINUTE = timedelta(minutes=1)
VALUES = [
    '{"b": 1e3, "a": [null, "ü 🙂"]}',
    "1.0",
    "-0.0",
    "123456789012345678901234567890",
    "0.1",
    '"x\\"y"',
    "null",
]


@dataclass
class Scene:
    engine: Engine
    database: Database
    run: ActiveRun
    saving: CheckpointSaver

    def long_way(self, name: str, value: str) -> Any:
        with self.database.autocommit() as session:
            return checkpoints.save(session, WorkTask, self.run.claim, name, value)

    def saved(self) -> dict[str, Any]:
        with self.database.autocommit() as session:
            return checkpoints.load(session, WorkTask, [self.run.claim.task_id])[self.run.claim.task_id]

    def execute(self, statement: str) -> None:
        with self.database.autocommit() as session:  # the connection that is kept
            session.execute(text(statement))


class KeptPlans(PlanCache):
    """Plans are never discarded, however slow the machine is."""

    def record_duration(self, seconds: float) -> None:
        pass


@contextmanager
def scene(engine: Engine, source: Engine | None = None) -> Iterator[Scene]:
    with Session(engine) as session, session.begin():
        Durable(session).spawn(WorkTask, "stepping", {})
    with Session(engine) as session, session.begin():
        [claim] = claims.claim(session, WorkTask, names=["stepping"], worker="w1", lease=MINUTE, limit=1)
    database = Database(source or engine, plans=KeptPlans())
    saving = CheckpointSaver(database)
    try:
        yield Scene(engine, database, ActiveRun(WorkTask, claim, monotonic() + 60), saving)
    finally:
        database.close()


def save(here: Scene, name: str, value: str) -> Any:
    return here.saving.save(here.run, name, value)


def test_a_value_comes_back_as_the_long_way_gives_it(engine):
    with scene(engine) as here:
        for number, value in enumerate(VALUES):
            expected = here.long_way(f"long {number}", value)
            short = save(here, f"short {number}", value)
            assert (repr(short.value), short.first) == (repr(expected), True)
        saved = here.saved()
        assert all(repr(saved[f"long {n}"]) == repr(saved[f"short {n}"]) for n in range(len(VALUES)))


def test_there_is_no_answer_without_a_connection_that_is_kept(engine):
    with scene(engine) as here:
        assert save(here, "a", "1") is None
        assert here.saved() == {}


def test_the_first_value_of_a_name_stays(engine):
    with scene(engine) as here:
        assert here.long_way("a", "1") == 1
        assert save(here, "a", "2") is None
        assert here.saved()["a"] == 1


def test_lost_claim_saves_nothing(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        with Session(engine) as session, session.begin():
            session.get(WorkTask, here.run.claim.task_id).token += 1
        assert save(here, "late", "1") is None
        assert "late" not in here.saved()
        with pytest.raises(LeaseLost):
            here.long_way("late", "1")


def test_lost_connection_saves_the_step_on_another_one(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        with here.database.autocommit() as session, engine.connect() as killer:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            killer.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        assert save(here, "c", "1") is None
        assert Steps(here.database, lease=MINUTE, asleep=Wakeup()).save(here.run, "c", "2") == 2
        assert here.saved()["c"] == 2


def test_deallocated_statement_is_prepared_again(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        here.execute("DEALLOCATE ALL")
        assert save(here, "c", "1") is None or here.saved()["c"] == 1
        assert save(here, "d", "1").value == 1


def test_connection_from_the_pool_reuses_its_prepared_statements(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        with here.database.transaction() as session:
            session.execute(text("SELECT 1"))  # takes the kept one's connection
        here.long_way("c", "1")
        assert save(here, "d", "1").value == 1


def test_a_connection_whose_plans_are_outdated_is_not_lent(engine):
    database = Database(engine, plans=(plans := KeptPlans()))
    with database.autocommit() as session:
        session.execute(text("SELECT 1"))
    PlanCache.record_duration(plans, DEFAULT_TUNING.slow_statement_s)  # no reason yet
    kept = database.acquire()
    assert kept is not None
    database.release(kept)
    PlanCache.record_duration(plans, DEFAULT_TUNING.slow_total_s + 0.01)
    assert database.acquire() is None
    with database.autocommit() as session:  # plans anew
        session.execute(text("SELECT 1"))
    kept = database.acquire()
    assert kept is not None
    database.release(kept)
    database.close()


def test_statement_listeners_see_checkpoint_writes(engine):
    with scene(engine) as here:
        heard: list[str] = []
        note = lambda *args: heard.append(args[2])  # noqa: E731 - to remove it again
        event.listen(Engine, "before_cursor_execute", note)
        try:
            here.long_way("a", "1")
            assert save(here, "b", "1") is None
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        assert any("durable_work_checkpoints" in said for said in heard)


def test_where_nothing_may_be_prepared_nothing_is(engine):
    url = engine.url.update_query_dict({"prepare_threshold": "none"})
    bare = create_engine(**settings_of(url))
    with scene(engine, bare) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1") is None
    bare.dispose()


@pytest.mark.owner
def test_tables_are_where_the_engine_has_them(engine):
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA IF EXISTS elsewhere CASCADE"))
        connection.execute(text("CREATE SCHEMA elsewhere"))
    moved = engine.execution_options(schema_translate_map={None: "elsewhere"})
    with moved.begin() as connection:
        WorkTask.metadata.create_all(connection)
    try:
        with scene(moved) as here:
            here.long_way("a", "1")
            assert save(here, "b", "2").value == 2
            assert {name: here.saved()[name] for name in "ab"} == {"a": 1, "b": 2}
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA elsewhere CASCADE"))


def test_save_of_a_cancelled_caller_arrives_and_its_connection_is_kept(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        threads = DaemonThreadPool("test", 1)
        with here.database.autocommit() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))

        async def main() -> Any:
            with Session(engine) as holder:
                holder.get(WorkTask, here.run.claim.task_id, with_for_update=True)
                task = asyncio.create_task(threads.call(save, here, "c", "1"))
                await asyncio.wrap_future(in_thread(wait_until_blocked, engine, pid))
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert here.database.acquire() is None  # the thread still has it
            return await threads.call(save, here, "d", "2")

        assert asyncio.run(asyncio.wait_for(main(), 60)).value == 2
        threads.stop()
        assert here.saved() == {"a": 1, "b": 1, "c": 1, "d": 2}


def test_save_that_outlasts_the_database_object_closes_its_connection(engine):
    with scene(engine) as here:
        here.long_way("a", "1")
        assert save(here, "b", "1").value == 1
        with here.database.autocommit() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
        with Session(engine) as holder:
            holder.get(WorkTask, here.run.claim.task_id, with_for_update=True)
            saving = in_thread(save, here, "c", "1")
            wait_until_blocked(engine, pid)
            here.database.close()
        assert saving.result(60).value == 1
        wait_until_gone(engine, pid)


def test_no_more_connections_save_at_once_than_there_are_threads_for_it(engine):
    with scene(engine) as here:
        steps = Steps(here.database, lease=MINUTE, asleep=Wakeup())
        threads = DaemonThreadPool("test", CONTEXT_THREADS)

        async def one(number: int) -> None:
            await threads.call(steps.save, here.run, f"n {number}", str(number))

        async def main() -> None:
            await asyncio.gather(*map(one, range(200)))

        asyncio.run(asyncio.wait_for(main(), 60))
        threads.stop()
        assert here.saved() == {f"n {number}": number for number in range(200)}
        assert here.database.engine.pool.checkedout() <= CONTEXT_THREADS
