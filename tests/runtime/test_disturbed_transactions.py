"""B26: what others do while a transaction is open: races, cancellations, lost leases, lost connections."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from sa_durable import Durable
from tests.runtime import audit_app
from tests.runtime.audit_app import Entry, LedgerTask
from tests.runtime.conftest import working
from tests.runtime.transaction_helpers import (
    PLAIN,
    all_tasks,
    at_work,
    do_once,
    enter,
    entries,
    every_door,
    once,
    two_clients,
)
from tests.waiting import wait_until


@every_door
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_what_lost_a_race_runs_again_in_the_same_attempt(books, script, handler, driver, isolation):
    with Session(books.engine) as session, session.begin():
        enter(session, 0)

    def work(session: Session) -> None:
        [row] = session.scalars(select(Entry))
        audit_app.tries.append(None)
        if len(audit_app.tries) == 1:
            with Session(books.engine) as rival, rival.begin():
                rival.scalars(select(Entry)).one().attempt = 5
        row.attempt += 1

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver, isolation):
        ended = books.ended(task)
    assert (ended.state, ended.attempt, len(audit_app.tries)) == ("completed", 1, 2)
    assert entries(books) == [6] and books.runs(task) == []


@two_clients
def test_what_loses_every_race_is_given_up(books, script, handler, driver):
    def work(session: Session) -> None:
        audit_app.tries.append(None)
        session.execute(text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"))

    script(work)
    task = books.spawn(handler.call(), max_attempts=1)
    with at_work(books, driver):
        failed = books.ended(task)
    assert failed.state == "failed" and len(audit_app.tries) == 10


@every_door
def test_a_heartbeat_in_between_does_not_end_a_strict_transaction(books, script, handler, driver):
    """It updates the task's row, which such a transaction then can't lock: it is run again."""

    def work(session: Session) -> None:
        enter(session)
        session.flush()
        [task] = all_tasks(books)
        audit_app.tries.append(None)
        if len(audit_app.tries) == 1:
            books.set(task.id, lease_expires_at=func.now() + timedelta(minutes=2))

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver, "REPEATABLE READ"):
        books.ended(task)
    once(books)
    assert len(audit_app.tries) == 2


@every_door
@pytest.mark.parametrize("how", ["cancelled", "taken"])
def test_a_task_that_was_lost_in_between_writes_nothing(books, script, handler, driver, how):
    def work(session: Session) -> None:
        enter(session)
        session.flush()
        [task] = all_tasks(books)
        if how == "taken":
            books.set(task.id, token=50, claimed_by="another")
        else:
            with Session(books.engine) as other, other.begin():
                Durable(other).cancel(LedgerTask, task.id)
        audit_app.tries.append(None)

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver) as worker:
        wait_until(lambda: audit_app.tries and not len(worker.parts.active))
    assert books.task(task).state == ("running" if how == "taken" else "cancelled")
    assert entries(books) == [] and books.steps(task) == {} and len(audit_app.tries) == 1


@pytest.mark.parametrize("handler", [audit_app.afree, audit_app.afree_whole])
@pytest.mark.parametrize("driver", [PLAIN, "postgresql+asyncpg"])
def test_an_async_function_is_ended_when_its_task_is_cancelled(
    books, monkeypatch, quick_beats, handler, driver
):
    inside, left = Event(), []

    async def work(session: AsyncSession) -> None:
        enter(session)
        await session.flush()
        inside.set()
        try:
            await asyncio.sleep(600)
        finally:
            left.append(True)

    async def play(ctx: Any) -> None:
        await (work(ctx.session) if handler.transactional else ctx.transaction("work", work))

    monkeypatch.setattr(audit_app, "play", play)
    task = books.spawn(handler.call())
    with at_work(books, driver, _tuning=quick_beats) as worker:
        assert inside.wait(60)
        with Session(books.engine) as session, session.begin():
            Durable(session).cancel(LedgerTask, task)
        wait_until(lambda: left and not len(worker.parts.active))  # the heartbeat found out
        again = books.spawn(audit_app.book.call(""))
        assert books.ended(again).state == "completed"
    assert books.task(task).state == "cancelled" and books.steps(task) == {} and len(entries(books)) == 1


@pytest.mark.parametrize("handler", [audit_app.scripted, audit_app.mixed, audit_app.scripted_whole])
def test_a_worker_that_gave_the_task_back_commits_nothing_of_it(books, script, handler):
    inside, gate = Event(), Event()

    def work(session: Session) -> None:
        enter(session)
        session.flush()
        inside.set()
        assert gate.wait(60)
        audit_app.tries.append(None)

    script(work)
    task = books.spawn(handler.call())
    with at_work(books) as worker:
        assert inside.wait(60)
        worker.request_stop()
        worker.request_stop()
        given_back = books.state_is(task, "pending")
        gate.set()
        wait_until(lambda: audit_app.tries)
    assert given_back.attempt == 1 and entries(books) == []
    with at_work(books):
        books.ended(task)
    once(books)


@every_door
def test_a_connection_that_is_lost_in_between_runs_it_again(books, script, handler, driver):
    def work(session: Session) -> None:
        enter(session)
        session.flush()
        audit_app.tries.append(None)
        if len(audit_app.tries) == 1:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    script(work)
    do_once(books, handler, driver)
    assert len(audit_app.tries) == 2


def test_more_transactions_than_connections_take_turns(books, script, caplog):
    caplog.set_level(logging.INFO, "sa_durable.worker")
    engine = create_engine(books.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    script(lambda _: wait_until(lambda: "(TimeoutError); retrying it" in caplog.text) and None)
    tasks = [books.spawn(audit_app.scripted.call()) for _ in range(6)]
    with working(books.engine, LedgerTask, session_factory=sessionmaker(engine)):
        assert {(task.state, task.attempt) for task in books.ended(*tasks)} == {("completed", 1)}
    engine.dispose()
