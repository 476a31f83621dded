"""An application that keeps books: every task writes one entry, however often its process is killed.

A task's `point` names where the process that runs its first attempt dies. Nothing in the library knows about that: the
points are SQLAlchemy's events, and a result that kills whoever encodes it.
"""

from __future__ import annotations

import os
import signal
import struct
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import PlainSerializer
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

from sa_durable.runtime import AsyncTaskContext, TaskContext
from tests.apps import NOW, application

# In the order of a run's life.
STEP_POINTS = ("begun", "written", "recorded", "committing", "committed", "replied", "encoded")
WHOLE_POINTS = ("begun", "written", "encoded", "recorded", "committing", "committed")


Base, LedgerTask = application(LedgerTask="ledger")


class Entry(Base):
    """Nothing in the database keeps a task from writing two."""

    __tablename__ = "ledger_entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[UUID]
    attempt: Mapped[int]


tries: list[UUID] = []  # in this process: the tasks that have begun to write


def die_at(here: str, point: str | None) -> None:
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)


def _encode(point: str) -> str:
    die_at("encoded", point)
    return point


@dataclass(frozen=True)
class Booked:
    entry: int
    point: Annotated[str, PlainSerializer(_encode)]


class LedgerSession(Session):
    pass


event.listen(LedgerSession, "before_commit", lambda session: die_at("recorded", session.info.get("point")))
event.listen(LedgerSession, "after_commit", lambda session: die_at("committed", session.info.get("point")))


def deadly(engine: Engine) -> None:
    """Have the engine's connections send COMMIT and die before the reply, where they are marked so."""

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        if connection.info.get("point") == "committing":
            send_commit(connection.connection.driver_connection)
            die_at("committing", "committing")


def deadly_flush() -> None:
    """Have this process die as the completion of a run is about to be sent whose result says so."""

    @event.listens_for(Engine, "before_cursor_execute")
    def flush(_c: object, _cursor: object, _statement: str, parameters: object, *_: object) -> None:
        if "flushing" in str(parameters):
            die_at("flushing", "flushing")


def send_commit(driver: Any) -> None:
    if hasattr(driver, "pgconn"):  # psycopg, sync and async
        driver.pgconn.send_query(b"COMMIT")
        driver.pgconn.flush()
    else:  # asyncpg: a simple query, as the protocol spells it
        driver._transport.write(struct.pack("!cI7s", b"Q", 11, b"COMMIT\0"))


def write(session: Session, task_id: UUID, attempt: int, point: str) -> int:
    tries.append(task_id)
    session.info["point"] = session.connection().info["point"] = point
    entry = Entry(task_id=task_id, attempt=attempt)
    session.add(entry)
    session.flush()
    die_at("written", point)
    return entry.id


async def awrite(session: AsyncSession, task_id: UUID, attempt: int, point: str) -> int:
    return await session.run_sync(write, task_id, attempt, point)


def doom(ctx: TaskContext | AsyncTaskContext, point: str) -> str:
    """`point` in the first attempt; die if it is its beginning."""
    now = point if ctx.attempt == 1 else ""
    die_at("begun", now)
    return now


@LedgerTask.handler(max_attempts=None, retry=NOW)
def book(ctx: TaskContext, point: str) -> Booked:
    now = doom(ctx, point)
    entry = ctx.transaction("book", write, ctx.task_id, ctx.attempt, now)
    die_at("replied", now)
    return Booked(entry, now)


@LedgerTask.handler(max_attempts=None, retry=NOW)
async def abook(ctx: AsyncTaskContext, point: str) -> Booked:
    now = doom(ctx, point)
    entry = await ctx.transaction("book", awrite, ctx.task_id, ctx.attempt, now)
    die_at("replied", now)
    return Booked(entry, now)


@LedgerTask.handler(max_attempts=None, retry=NOW, transactional=True)
def book_whole(ctx: TaskContext, point: str) -> Booked:
    now = doom(ctx, point)
    return Booked(write(ctx.session, ctx.task_id, ctx.attempt, now), now)


@LedgerTask.handler(max_attempts=None, retry=NOW, transactional=True)
async def abook_whole(ctx: AsyncTaskContext, point: str) -> Booked:
    now = doom(ctx, point)
    return Booked(await awrite(ctx.session, ctx.task_id, ctx.attempt, now), now)


# What a test puts here, through every client.


def script(session: Session) -> Any: ...


async def ascript(session: AsyncSession) -> Any:
    return await session.run_sync(script)


@LedgerTask.handler(retry=NOW, max_attempts=2)
def scripted(ctx: TaskContext) -> Any:
    return ctx.transaction("script", script)


@LedgerTask.handler(retry=NOW, max_attempts=2)
async def ascripted(ctx: AsyncTaskContext) -> Any:
    return await ctx.transaction("script", ascript)


@LedgerTask.handler(retry=NOW, max_attempts=2)
async def mixed(ctx: AsyncTaskContext) -> Any:
    return await ctx.transaction("script", script)


@LedgerTask.handler(retry=NOW, max_attempts=2, transactional=True)
def scripted_whole(ctx: TaskContext) -> Any:
    return script(ctx.session)


@LedgerTask.handler(retry=NOW, max_attempts=2, transactional=True)
async def ascripted_whole(ctx: AsyncTaskContext) -> Any:
    return await ascript(ctx.session)


# The same with a context.


def play(ctx: Any) -> Any: ...


@LedgerTask.handler(retry=NOW, max_attempts=2)
def free(ctx: TaskContext) -> Any:
    return play(ctx)


@LedgerTask.handler(retry=NOW, max_attempts=2)
async def afree(ctx: AsyncTaskContext) -> Any:
    return await play(ctx)


@LedgerTask.handler(retry=NOW, max_attempts=2, transactional=True)
def free_whole(ctx: TaskContext) -> Any:
    return play(ctx)


@LedgerTask.handler(retry=NOW, max_attempts=2, transactional=True)
async def afree_whole(ctx: AsyncTaskContext) -> Any:
    return await play(ctx)


@LedgerTask.handler(priority=1000)
def close_books(ctx: TaskContext) -> None:
    """When nothing else is left: the end of the process."""
    os.kill(os.getpid(), signal.SIGTERM)


HANDLERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "step": (book, STEP_POINTS),
    "async step": (abook, STEP_POINTS),
    "whole": (book_whole, WHOLE_POINTS),
    "async whole": (abook_whole, WHOLE_POINTS),
}
