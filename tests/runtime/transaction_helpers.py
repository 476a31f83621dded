"""What tests of transactions share: clients, a worker on engines of their own, and what was entered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import NullPool, create_engine, func, make_url, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tests.runtime import audit_app
from tests.runtime.audit_app import Entry, LedgerTask
from tests.runtime.conftest import Shop, working
from tests.waiting import wait_until

PLAIN = "postgresql+psycopg"
CLIENTS = [
    (audit_app.scripted, PLAIN),
    (audit_app.ascripted, PLAIN),
    (audit_app.ascripted, "postgresql+asyncpg"),
    (audit_app.mixed, PLAIN),
    (audit_app.scripted_whole, PLAIN),
    (audit_app.ascripted_whole, PLAIN),
    (audit_app.ascripted_whole, "postgresql+asyncpg"),
]
every_door = pytest.mark.parametrize(
    ("handler", "driver"), CLIENTS, ids=[f"{h.name} {d.split('+')[1]}" for h, d in CLIENTS]
)
two_clients = pytest.mark.parametrize(
    ("handler", "driver"), [CLIENTS[0], CLIENTS[6]], ids=["plain step", "async whole"]
)
VARIANTS = [
    ("step", "postgresql+psycopg"),
    ("whole", "postgresql+psycopg"),
    ("async step", "postgresql+psycopg"),
    ("async step", "postgresql+asyncpg"),
    ("async whole", "postgresql+psycopg"),
    ("async whole", "postgresql+asyncpg"),
]
"""Each of the ledger's HANDLERS, with the drivers that its transactions may be on."""
asyncpg = pytest.mark.parametrize("driver", [PLAIN, "postgresql+asyncpg"])


@contextmanager
def at_work(books: Shop, driver: str = PLAIN, isolation: str | None = None, **options: Any) -> Iterator[Any]:
    """A worker whose transactions are on engines of these settings."""
    settings = {"isolation_level": isolation} if isolation else {}
    engine = create_engine(books.engine.url, **settings)
    async_engine = create_async_engine(
        make_url(books.engine.url).set(drivername=driver), poolclass=NullPool, **settings
    )
    factories = {
        "session_factory": sessionmaker(engine),
        "async_session_factory": async_sessionmaker(async_engine),
    }
    with working(books.engine, LedgerTask, **{**factories, **options}) as worker:
        yield worker
    wait_until(lambda: not engine.pool.checkedout())  # a thread may outlive its worker
    engine.dispose()


def do_once(books: Shop, handler: Any, driver: str) -> Any:
    """The task of this handler, run on this driver: it ended in its first attempt, with one entry."""
    task = books.spawn(handler.call())
    with at_work(books, driver):
        books.ended(task)
    return once(books)


def entries(books: Shop) -> list[int]:
    """The attempts column of what was written, which these tests use as they like."""
    with Session(books.engine) as session:
        return list(session.scalars(select(Entry.attempt).order_by(Entry.id)))


def all_tasks(books: Shop) -> list[Any]:
    with Session(books.engine) as session:
        return list(session.scalars(select(LedgerTask)))


def enter(session: Session, number: int = 1) -> Entry:
    entry = Entry(task_id=uuid4(), attempt=number)
    session.add(entry)
    return entry


def once(books: Shop) -> Any:
    """The task, ended as it should have: in its first attempt, with one entry."""
    [task] = all_tasks(books)
    assert (task.state, task.attempt, books.runs(task.id)) == ("completed", 1, [])
    assert entries(books) == [1]
    return task


def ended(books, handler, **options) -> Any:
    """A task of this handler, once a worker has run it."""
    task = books.spawn(handler.call())
    with working(options.pop("source", books.engine), LedgerTask, **options):
        return books.ended(task)


def count(books, what: Any = Entry) -> int:
    with Session(books.engine) as session:
        return session.scalar(select(func.count()).select_from(what))
