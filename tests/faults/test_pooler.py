"""C6: everything goes through PgBouncer in transaction mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from statistics import median
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, func, make_url, select, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.runtime.connections.engines import settings_of
from tests.databases import throwaway, url_of
from tests.faults.conftest import missing, seconds
from tests.faults.load import Load, Plan, under_load
from tests.faults.pooler import pooler, version
from tests.runtime import app, audit_app
from tests.runtime.audit_app import Entry, LedgerTask
from tests.runtime.conftest import working
from tests.waiting import wait_until


@pytest.fixture
def pooled(steady) -> Iterator[tuple[str, str]]:
    """The URLs of a database, direct, and through a PgBouncer that has two connections to it."""
    if not version():
        missing("there is no pgbouncer: C6 was not run")
    with pooler(steady.url, pool=2) as through, throwaway(steady.url) as engine:
        yield url_of(engine), str(through.url.set(database=engine.url.database))


def test_two_connections_are_enough_for_everybody_where_no_session_is_kept(steady, figures, pooled):
    """Two workers with eleven connections each and those of their handlers, and the spawners. Only listeners go around."""
    direct, through = pooled
    lasts = seconds(15)
    job = {"listen_url": direct, "lease": 5.0}
    plan = Plan(tasks=int(10 * lasts), seconds=lasts, workers=2, pause=0.0, job=job)
    through += "?prepare_threshold=none"
    with under_load(steady, direct, plan, figures("C6 PgBouncer, pool of 2"), through=through) as load:
        load.drain()
        began, ended = load.started, load.now()
        found = load.settle()
        found.notes["pgbouncer"] = version()
        found.notes["pick-up (median, ms)"] = round(1000 * median(load.pick_up(began, ended)))
        logs = [hand.log for hand in load.crew.hands]
    assert found.findings == []
    assert not any("prepared statement" in log for log in logs)


def says(load: Load, what: str) -> bool:
    return load.until(lambda: any(what in hand.log for hand in load.crew.hands), 60)


def test_a_worker_whose_listener_goes_through_it_polls_and_says_so(steady, figures, pooled):
    direct, through = pooled
    plan = Plan(tasks=40, seconds=4, workers=1)
    through += "?prepare_threshold=none"
    with under_load(steady, direct, plan, figures("C6 PgBouncer, polling"), through=through) as load:
        assert says(load, "give the worker a direct listen_url")
        found = load.settle()
    assert found.findings == []


def test_a_worker_that_prepares_statements_behind_it_says_what_to_set(steady, figures, pooled):
    direct, through = pooled
    plan = Plan(tasks=100, seconds=3, workers=2)
    with under_load(steady, direct, plan, figures("C6 PgBouncer, not configured"), through=through) as load:
        assert says(load, "connect with prepare_threshold=None")


def test_a_url_says_that_nothing_is_to_be_prepared():
    """psycopg's own URLs can't."""
    url = make_url("postgresql://me@there/db?prepare_threshold=none")
    settings = settings_of(url)
    assert settings["connect_args"]["prepare_threshold"] is None and not settings["url"].query
    settings = settings_of(url.update_query_dict({"prepare_threshold": "3"}))
    assert settings["connect_args"]["prepare_threshold"] == 3
    assert "prepare_threshold" not in settings_of(make_url("postgresql://me@there/db"))["connect_args"]


HANDLERS, LEASE = 3, timedelta(seconds=12)  # extended after a third of it


@pytest.mark.parametrize(
    ("pool", "others", "enough"),
    [(3, 0, False), (4, 0, True), (4, 1, False), (5, 1, True)],
    ids=["as many", "one more", "one more, which the application holds", "two more, of which it holds one"],
)
def test_leases_are_kept_through_a_transaction_pooler(steady, monkeypatch, pool, others, enough):
    if not version():
        missing("there is no pgbouncer: C6 was not run")
    inside: list[None] = []

    def stay(session: Session) -> None:
        session.add(Entry(task_id=uuid4(), attempt=1))
        session.flush()
        inside.append(None)
        app.gate.wait(60)

    app.reset()
    monkeypatch.setattr(audit_app, "script", stay)
    with ExitStack() as stack:
        through = stack.enter_context(pooler(steady.url, pool))
        direct = stack.enter_context(throwaway(steady.url, audit_app.Base.metadata))
        url = through.url.set(database=direct.url.database)
        engine = create_engine(url, connect_args={"prepare_threshold": None})
        stack.callback(engine.dispose)
        with Session(direct) as session, session.begin():
            for n in range(HANDLERS):
                Durable(session).spawn((audit_app.scripted, audit_app.scripted_whole)[n % 2].call())
        options = {"listen_url": url_of(direct), "lease": LEASE, "concurrency": HANDLERS}
        stack.enter_context(working(engine, LedgerTask, **options))
        wait_until(lambda: len(inside) == HANDLERS)
        for _ in range(others):
            stack.enter_context(engine.connect()).execute(text("SELECT 1"))
        last = look(direct, select(func.max(LedgerTask.lease_expires_at)))
        extended = select(func.count()).where(LedgerTask.lease_expires_at > last)
        if enough:
            wait_until(lambda: look(direct, extended) == HANDLERS)
        else:
            wait_until(lambda: look(direct, select(func.clock_timestamp() > last)))
            assert look(direct, extended) == 0


def look(engine: Engine, statement: Any) -> Any:
    with Session(engine) as session:
        return session.scalar(statement)
