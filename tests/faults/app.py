"""The application that the faults are done to. What its tasks do is in its tables, and so is what is done to them."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import DDL, BigInteger, DateTime, Identity, event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, Session, mapped_column

from sa_durable.runtime import AsyncTaskContext, TaskContext
from tests.apps import NOW, application

MAX_ATTEMPTS = 100


Base, FaultTask = application(FaultTask="faults")


class Effect(Base):
    """What a step did. Nothing in the database keeps a step from doing it twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task_id: Mapped[UUID] = mapped_column(index=True)
    step: Mapped[int]
    token: Mapped[int] = mapped_column(BigInteger)


class Ack(Base):
    """A spawn that was answered. Written when all is over."""

    __tablename__ = "acks"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    key: Mapped[str]
    task_id: Mapped[UUID]


class Move(Base):
    """A change of a task's state or claim, written by a trigger in the same transaction."""

    __tablename__ = "moves"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    task_id: Mapped[UUID] = mapped_column(index=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    before: Mapped[str]
    after: Mapped[str]
    token_before: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[int] = mapped_column(BigInteger)
    worker_before: Mapped[str | None]
    worker: Mapped[str | None]


TASKS = FaultTask.__table__.name
_RECORD = f"""
CREATE FUNCTION record_move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO moves (task_id, at, before, after, token_before, token, worker_before, worker)
    VALUES (NEW.id, clock_timestamp(), OLD.state, NEW.state, OLD.token, NEW.token, OLD.claimed_by, NEW.claimed_by);
    RETURN NULL;
END $$;
CREATE TRIGGER record_move AFTER UPDATE OF state, token ON {TASKS} FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.token IS DISTINCT FROM NEW.token)
    EXECUTE FUNCTION record_move()
"""
event.listen(Base.metadata, "after_create", DDL(_RECORD))


@dataclass(frozen=True)
class Outcome:
    """What a task returns: the claim that ended it, and the effects that its steps said they had."""

    token: int
    effects: list[int]


STEPS = {"plain": 5, "asynchronous": 5, "whole": 1, "parent": 1, "blocks": 1}
"""How many effects a completed task of each name has."""


def token_of(ctx: TaskContext | AsyncTaskContext) -> int:
    return ctx._run.claim.token


def act(session: Session, task_id: UUID, step: int, token: int, pause: float) -> int:
    """The effect of a step; the pause is for faults to find its transaction open."""
    effect = Effect(task_id=task_id, step=step, token=token)
    session.add(effect)
    session.flush()
    time.sleep(random.uniform(0, pause))
    return effect.id


async def act_async(session: AsyncSession, task_id: UUID, step: int, token: int, pause: float) -> int:
    acted = await session.run_sync(act, task_id, step, token, 0)
    await asyncio.sleep(random.uniform(0, pause))
    return acted


@FaultTask.handler(max_attempts=MAX_ATTEMPTS, retry=NOW)
def plain(ctx: TaskContext, pause: float) -> Outcome:
    token = token_of(ctx)
    steps = range(STEPS["plain"])
    return Outcome(token, [ctx.transaction(f"step {n}", act, ctx.task_id, n, token, pause) for n in steps])


@FaultTask.handler(max_attempts=MAX_ATTEMPTS, retry=NOW)
async def asynchronous(ctx: AsyncTaskContext, pause: float) -> Outcome:
    token, effects = token_of(ctx), []
    for n in range(STEPS["asynchronous"]):
        effects.append(await ctx.transaction(f"step {n}", act_async, ctx.task_id, n, token, pause))
        await ctx.step("beside", asyncio.sleep, 0)
    return Outcome(token, effects)


@FaultTask.handler(max_attempts=MAX_ATTEMPTS, retry=NOW, transactional=True)
def whole(ctx: TaskContext, pause: float) -> Outcome:
    token = token_of(ctx)
    return Outcome(token, [act(ctx.session, ctx.task_id, 0, token, pause)])


@FaultTask.handler(max_attempts=MAX_ATTEMPTS, retry=NOW)
def parent(ctx: TaskContext, pause: float) -> Outcome:
    """Sleeps, and has a child."""
    token = token_of(ctx)
    ctx.sleep_for(timedelta(milliseconds=20))
    child = ctx.spawn(whole.call(pause=pause))
    ctx.join(child)
    token = token_of(ctx)
    return Outcome(token, [ctx.transaction("step 0", act, ctx.task_id, 0, token, pause)])


@FaultTask.handler(max_attempts=3, retry=NOW)
async def blocks(ctx: AsyncTaskContext, seconds: float) -> Outcome:
    """Keeps the event loop from everything else."""
    token = token_of(ctx)
    time.sleep(seconds)  # noqa: ASYNC251 - the fault
    return Outcome(token, [await ctx.transaction("step 0", act_async, ctx.task_id, 0, token, 0)])


@FaultTask.handler(max_attempts=3, retry=NOW)
def exits(ctx: TaskContext, number: int) -> None:
    """Ends its process, and with it every other task that runs there."""
    os._exit(number)


@FaultTask.handler(max_attempts=3, retry=NOW)
def recurses(ctx: TaskContext, number: int) -> int:
    return recurses(ctx, number + 1) + 1


@FaultTask.handler(max_attempts=3, retry=NOW)
def unreadable(ctx: TaskContext, number: int) -> None: ...


def call(number: int, pause: float) -> Any:
    """The task of key `number`: all kinds in turn, most of them with steps."""
    match number % 8:
        case 0:
            return whole.call(pause=pause)
        case 1:
            return parent.call(pause=pause)
        case 2 | 4 | 6:
            return asynchronous.call(pause=pause)
        case _:
            return plain.call(pause=pause)
