"""B26: what ctx.transaction and transactional handlers promise while nothing disturbs them: all of it or nothing, once."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.runtime import audit_app
from tests.runtime.audit_app import Entry, LedgerTask
from tests.runtime.transaction_helpers import (
    all_tasks,
    at_work,
    do_once,
    enter,
    entries,
    every_door,
    once,
    two_clients,
)


@every_door
def test_rows_and_value_are_stored_together(books, script, handler, driver):
    def work(session: Session) -> int:
        entry = enter(session)
        session.flush()
        return entry.id

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver):
        assert books.ended(task).state == "completed"
    with Session(books.engine) as session:
        assert once(books).result == session.scalar(select(Entry.id))
    steps = {} if "whole" in handler.name else {"script": once(books).result}
    assert books.steps(task) == steps


@every_door
def test_exception_rolls_everything_back_and_the_next_attempt_restarts(books, script, handler, driver):
    def work(session: Session) -> None:
        enter(session)
        Durable(session).spawn(audit_app.book.call(""), delay=timedelta(days=1))
        Durable(session).emit_event(LedgerTask, "booked")
        session.flush()
        audit_app.tries.append(None)
        if len(audit_app.tries) == 1:
            raise ValueError("the first time")

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver):
        assert books.ended(task).state == "completed"
    assert [run.error["type"] for run in books.runs(task)] == ["ValueError"]
    assert entries(books) == [1] and len(all_tasks(books)) == 2  # itself, and the one that it spawned
    with Session(books.engine) as session:
        assert session.scalar(select(func.count()).select_from(LedgerTask.Event)) == 1


@every_door
@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "nan"), (Entry(), "Entry")], ids=["nan", "an ORM object"]
)
def test_a_value_that_json_cannot_hold_fails_the_task_and_writes_nothing(
    books, script, handler, driver, value, says
):
    script(lambda session: [enter(session), value][1])
    task = books.spawn(handler.call())
    with at_work(books, driver):
        failed = books.ended(task)
    assert (failed.state, failed.attempt, failed.error["type"]) == ("failed", 1, "InvalidResult")
    assert says in failed.error["message"] and entries(books) == [] and books.steps(task) == {}


@every_door
def test_the_application_cannot_commit_half_of_it(books, script, handler, driver):
    def work(session: Session) -> None:
        enter(session)
        session.commit()

    script(work)
    task = books.spawn(handler.call())
    with at_work(books, driver):
        failed = books.ended(task)
    assert (failed.state, failed.error["type"]) == ("failed", "DeclarationError")
    assert "commits when the function returns" in failed.error["message"] and entries(books) == []


@two_clients
def test_swallowed_commit_changes_nothing_and_savepoints_work(books, script, handler, driver):
    def work(session: Session) -> None:
        with session.begin_nested():
            enter(session, 1)
        with suppress(ZeroDivisionError), session.begin_nested():
            enter(session, 2)
            1 / 0  # noqa: B018 - to roll back
        for commit in (session.commit, lambda: session.begin_nested() and session.commit()):
            with pytest.raises(TypeError, match="must not be committed"):
                commit()
        assert entries(books) == []
        audit_app.tries.append(None)

    script(work)
    do_once(books, handler, driver)
    assert len(audit_app.tries) == 1


@two_clients
def test_an_error_of_the_database_that_was_swallowed_commits_nothing(books, script, handler, driver):
    def work(session: Session) -> None:
        enter(session)
        session.flush()
        with suppress(Exception):
            session.execute(text("SELECT 1/0"))  # without a savepoint, the transaction is lost

    script(work)
    task = books.spawn(handler.call(), max_attempts=1)
    with at_work(books, driver):
        assert books.ended(task).state == "failed"
    assert entries(books) == [] and books.steps(task) == {}


@pytest.mark.direct(reason="asyncpg in AUTOCOMMIT prepares on one connection and executes on another")
def test_an_engine_without_transactions_is_refused(books, script):
    script(lambda session: enter(session).attempt)
    tasks = [books.spawn(handler.call()) for handler in (audit_app.scripted, audit_app.ascripted_whole)]
    with at_work(books, "postgresql+asyncpg", isolation="AUTOCOMMIT"):
        failed = books.ended(*tasks)
    assert [task.error["type"] for task in failed] == 2 * ["DeclarationError"]
    assert all("AUTOCOMMIT" in task.error["message"] for task in failed) and entries(books) == []
