"""B26: the connection is lost while COMMIT is on its way. Whether it happened is found out, not guessed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sa_durable.runtime import Worker
from tests.proxy import Link, Proxy
from tests.runtime import audit_app
from tests.runtime.audit_app import HANDLERS, Entry, LedgerTask
from tests.runtime.conftest import Shop, working
from tests.runtime.transaction_helpers import VARIANTS
from tests.waiting import wait_until

every_variant = pytest.mark.parametrize(("variant", "driver"), VARIANTS)


class FirstCommit:
    """What becomes of the first COMMIT that passes: `arrives` at the server, before the client is told that its
    connection is lost, after the test says so, or never."""

    def __init__(self, *, arrives: bool, at_once: bool) -> None:
        self._arrives, self._seen = arrives, False
        self.let_go = Event()
        if at_once:
            self.let_go.set()

    def __call__(self, link: Link, data: bytes) -> bytes:
        if self._seen or b"COMMIT" not in data:
            return data
        self._seen = True
        if self._arrives and self.let_go.is_set():
            link.reply_lost = True
            return data
        link.close_client()
        assert self.let_go.wait(60)
        if not self._arrives:
            link.close()
        return data


@contextmanager
def through(books: Shop, driver: str, rule: FirstCommit, **options: Any) -> Iterator[Worker]:
    """A worker whose transactions go through a proxy, and nothing else of its."""
    with Proxy(books.engine.url, rule) as proxy:
        engine = create_engine(proxy.url)
        async_engine = create_async_engine(proxy.url.set(drivername=driver), poolclass=NullPool)
        try:
            with working(
                books.engine,
                LedgerTask,
                session_factory=sessionmaker(engine),
                async_session_factory=async_sessionmaker(async_engine),
                **options,
            ) as worker:
                yield worker
        finally:
            wait_until(lambda: not engine.pool.checkedout())
            engine.dispose()


def run_through(books: Shop, variant: str, driver: str, rule: FirstCommit) -> object:
    """The id of a task, once it has ended."""
    task_id = books.spawn(HANDLERS[variant][0].call(""))
    with through(books, driver, rule):
        books.ended(task_id)
    return task_id


def check_books(books: Shop, task_id: object, tries: int) -> None:
    """One entry, in the first attempt."""
    with Session(books.engine) as session:
        entries = [(entry.id, entry.attempt) for entry in session.scalars(select(Entry))]
    task = books.task(task_id)
    assert (task.state, task.attempt, books.runs(task_id)) == ("completed", 1, [])
    assert entries == [(task.result["entry"], 1)] and len(audit_app.tries) == tries


@every_variant
def test_a_commit_whose_reply_was_lost_is_found_and_nothing_runs_again(books, variant, driver):
    task = run_through(books, variant, driver, FirstCommit(arrives=True, at_once=True))
    check_books(books, task, tries=1)


@every_variant
def test_a_commit_that_never_arrived_is_run_again_in_the_same_attempt(books, variant, driver):
    task = run_through(books, variant, driver, FirstCommit(arrives=False, at_once=True))
    check_books(books, task, tries=2)


@pytest.mark.pooled(connections=3, reason="the commit on its way, who waits for it, who looks")
@every_variant
@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_that_is_still_on_its_way_is_waited_for(books, variant, driver, arrives):
    commit = FirstCommit(arrives=arrives, at_once=False)
    task = books.spawn(HANDLERS[variant][0].call(""))
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    with through(books, driver, commit), books.engine.connect() as connection:
        watching = connection.execution_options(isolation_level="AUTOCOMMIT")
        wait_until(lambda: watching.scalar(waiting), what="somebody who waits for the first try")
        assert len(audit_app.tries) == 1 and books.task(task).state == "running"
        commit.let_go.set()
        books.ended(task)
    check_books(books, task, tries=1 if arrives else 2)


@pytest.mark.pooled(connections=4, reason="the commit that hangs, who waits for it, and two for everybody")
@every_variant
def test_a_commit_that_hangs_costs_no_more_than_the_lease(books, variant, driver):
    """Its connection is neither alive nor closed, and PostgreSQL keeps the task's row locked."""
    commit = FirstCommit(arrives=True, at_once=False)
    task = books.spawn(HANDLERS[variant][0].call(""))
    options = {"lease": timedelta(seconds=6), "sweep_interval": timedelta(seconds=0.1), "concurrency": 1}
    with through(books, driver, commit, **options) as worker:
        wait_until(lambda: audit_app.tries and not len(worker.parts.active), what="the run to be given up")
        assert (
            books.ended(books.spawn(HANDLERS[variant][0].call(""))).state == "completed"
        )  # in the same slot
        assert books.task(task).state == "running" and audit_app.tries.count(task) == 1
        commit.let_go.set()
        books.ended(task)
    assert audit_app.tries.count(task) == 1 and books.task(task).state == "completed"
