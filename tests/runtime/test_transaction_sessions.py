"""Where the sessions of ctx.transaction and transactional handlers come from (B26)."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.databases import url_of
from tests.proxy import Link, Proxy
from tests.runtime import audit_app
from tests.runtime.audit_app import Entry
from tests.runtime.transaction_helpers import asyncpg, count, ended


@pytest.mark.parametrize("make", ["url", "engine", "psycopg async", "asyncpg"])
def test_without_factories_sessions_are_on_the_workers_engine(books, play, make):
    url = books.engine.url
    source = {
        "url": lambda: url_of(books.engine).replace("+psycopg", ""),
        "engine": lambda: books.engine,
        "psycopg async": lambda: create_async_engine(url, poolclass=NullPool),
        "asyncpg": lambda: create_async_engine(url.set(drivername="postgresql+asyncpg"), poolclass=NullPool),
    }[make]()

    async def plays(ctx: Any) -> None:
        await ctx.transaction("async", audit_app.awrite, ctx.task_id, 1, "")
        await ctx.transaction("plain", audit_app.write, ctx.task_id, 1, "")

    play(plays)
    assert ended(books, audit_app.afree, source=source).state == "completed" and count(books) == 2


@pytest.mark.direct(reason="PgBouncer takes no `options` of a connection")
@pytest.mark.parametrize("given", ["engine", "async engine"])
def test_engine_arguments_apply_to_every_connection(books, play, given):
    make: Any = create_engine if given == "engine" else create_async_engine
    source = make(
        books.engine.url,
        poolclass=NullPool,
        connect_args={"application_name": "the shop"},
        execution_options={"shop": "open"},
    )

    def token(_dialect: Any, _record: Any, _args: Any, arguments: dict[str, Any]) -> None:
        arguments["options"] = "-c work_mem=7MB"

    event.listen(getattr(source, "sync_engine", source), "do_connect", token)
    seen: list[Any] = []
    show = text("SELECT current_setting('application_name'), current_setting('work_mem')")

    async def look(session: AsyncSession) -> None:
        connection = await session.connection()
        seen.append(
            (*(await session.execute(show)).one(), connection.sync_connection.get_execution_options()["shop"])
        )

    async def plays(ctx: Any) -> None:
        await ctx.transaction("async", look)
        with ctx._operations.steps._database.transaction() as session:  # one of the worker's own
            seen.append(tuple(session.execute(show).one()))

    play(plays)
    assert ended(books, audit_app.afree, source=source).state == "completed"
    assert seen == [("the shop", "7MB", "open"), ("the shop", "7MB")]


def test_engine_with_a_creator_is_refused_where_it_cannot_work(books, play):
    def creator() -> Any:
        return psycopg.connect(url_of(books.engine).replace("+psycopg", ""))

    async def plays(ctx: Any) -> None:
        await ctx.transaction("async", audit_app.awrite, ctx.task_id, 1, "")

    play(plays)
    failed = ended(books, audit_app.afree, source=create_engine("postgresql+psycopg://", creator=creator))
    assert (failed.state, failed.attempt, failed.error["type"]) == ("failed", 1, "DeclarationError")
    assert "async_session_factory" in failed.error["message"]


class Audited(Session):
    commits = 0


event.listen(Audited, "after_commit", lambda _: setattr(Audited, "commits", Audited.commits + 1))


@pytest.mark.parametrize("scoped", [False, True])
def test_sessions_come_from_the_applications_factories(books, play, scoped):
    engine = create_engine(books.engine.url)
    async_engine = create_async_engine(books.engine.url)
    plain: Any = sessionmaker(engine, class_=Audited)
    asynchronous: Any = async_sessionmaker(async_engine, sync_session_class=Audited)
    if scoped:
        plain, asynchronous = scoped_session(plain), async_scoped_session(asynchronous, asyncio.current_task)

    def look(session: Session) -> None:
        assert isinstance(session, Audited)
        session.add(Entry(task_id=UUID(int=1), attempt=1))

    async def alook(session: AsyncSession) -> None:
        assert isinstance(session.sync_session, Audited)
        session.add(Entry(task_id=UUID(int=1), attempt=1))

    async def plays(ctx: Any) -> None:
        for n in range(2):
            await ctx.transaction("async", alook)
            await ctx.transaction("plain", look)
            if ctx.attempt == 1 and n == 0:
                raise ValueError("again, with sessions that were used before")
        await async_engine.dispose()

    play(plays)
    Audited.commits = 0
    done = ended(books, audit_app.afree, session_factory=plain, async_session_factory=asynchronous)
    assert (done.state, Audited.commits, count(books)) == ("completed", 4, 4)
    engine.dispose()


@asyncpg
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("handler", [audit_app.free, audit_app.afree_whole])
def test_a_connection_that_cannot_be_made_yet_burns_no_attempt(books, play, handler, driver):
    refused = []

    def refuse(link: Link, data: bytes) -> bytes:
        if len(refused) < 3:
            refused.append(data)
            link.close()
        return data

    def plays(ctx: Any) -> Any:
        if handler.is_async:
            return audit_app.awrite(ctx.session, ctx.task_id, 1, "")
        return ctx.transaction("book", audit_app.write, ctx.task_id, 1, "")

    play(plays)
    with Proxy(books.engine.url, refuse) as proxy:
        engine = create_engine(proxy.url)
        async_engine = create_async_engine(proxy.url.set(drivername=driver), poolclass=NullPool)
        done = ended(
            books,
            handler,
            session_factory=sessionmaker(engine),
            async_session_factory=async_sessionmaker(async_engine),
        )
        engine.dispose()
    gc.collect()  # asyncpg leaves the sockets of connections that were refused: here, not in another test
    assert (done.state, done.attempt, count(books)) == ("completed", 1, 1) and len(refused) == 3
