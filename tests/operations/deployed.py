"""An application of which two releases are at work at once. `RELEASE` says which one this process runs; none: it only
spawns, by name.

From the first to the second release: `grows` takes one more param, which has a default; `shrinks` loses one; `changes`
has its param of another type; `before` is called `after`; `added` is new; `naps` has one more step.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_durable import DurableTask, Fixed, TaskContext

RELEASE = int(os.environ.get("RELEASE", "0"))


class Base(DeclarativeBase):
    pass


class DeployedTask(DurableTask, Base):
    __queue__ = "deployed"
    __spawn_defaults__ = {"retry": Fixed(timedelta(0), jitter=0)}  # noqa: RUF012 - as applications write it


class Effect(Base):
    """Written once by each task, or nothing has kept its promise."""

    __tablename__ = "deployed_effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[UUID]
    release: Mapped[int]


def write(session: Session, ctx: TaskContext) -> int:
    session.add(Effect(task_id=ctx.task_id, release=RELEASE))
    return RELEASE


def done(ctx: TaskContext) -> int:
    return ctx.transaction("effect", write, ctx)


def simple(ctx: TaskContext, number: int) -> int:
    return done(ctx)


if RELEASE:
    DeployedTask.handler("same")(simple)

    @DeployedTask.handler()
    def slow(ctx: TaskContext, number: int) -> int:
        """Is in a step when its worker is stopped, now and then."""
        ctx.step("wait", time.sleep, 0.2)
        return done(ctx)


if RELEASE == 1:

    @DeployedTask.handler()
    def grows(ctx: TaskContext, number: int) -> int:
        return done(ctx)

    @DeployedTask.handler()
    def shrinks(ctx: TaskContext, number: int, note: str) -> int:
        return done(ctx)

    DeployedTask.handler("changes")(simple)
    DeployedTask.handler("before")(simple)

    @DeployedTask.handler()
    def naps(ctx: TaskContext, number: int) -> list[int]:
        first = done(ctx)
        ctx.sleep_for(timedelta(seconds=1))
        return [first]


if RELEASE == 2:

    @DeployedTask.handler("grows")
    def grows_2(ctx: TaskContext, number: int, unit: str = "mm") -> int:
        return done(ctx)

    @DeployedTask.handler("shrinks")
    def shrinks_2(ctx: TaskContext, number: int) -> int:
        return done(ctx)

    @DeployedTask.handler("changes")
    def changes_2(ctx: TaskContext, number: list[int]) -> int:
        return done(ctx)

    DeployedTask.handler("after")(simple)
    DeployedTask.handler("added")(simple)

    @DeployedTask.handler("naps")
    def naps_2(ctx: TaskContext, number: int) -> list[int]:
        first = done(ctx)
        ctx.sleep_for(timedelta(seconds=1))
        return [first, ctx.step("more", lambda: RELEASE)]
