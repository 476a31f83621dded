"""Tests as applications write them, and what mypy and pyright make of them. Never run: test_types.py checks it."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session

from sa_durable import DurableTask, TaskContext, TaskState
from sa_durable.testing import (
    Clock,
    Idle,
    assert_not_spawned,
    assert_not_spawned_async,
    assert_spawned,
    assert_spawned_async,
    clock,
    run_until_idle,
    run_until_idle_async,
    task_factory,
)


class Base(DeclarativeBase):
    pass


class BillingTask(DurableTask, Base):
    __queue__ = "billing"


@BillingTask.handler()
def charge(ctx: TaskContext, order_id: int, count: int = 1) -> str:
    return f"{order_id}"


def plain_tests(engine: Engine, session: Session, scoped: scoped_session[Session]) -> None:
    assert_type(assert_spawned(session, charge, order_id=7), BillingTask)
    assert_type(assert_spawned(engine, charge, {"count": 3}, count=2, key="k"), BillingTask)
    assert_type(assert_spawned(scoped, BillingTask, "charge", order_id=7), BillingTask)
    assert_not_spawned(session, charge, order_id=8)
    assert_spawned(session, "charge")  # type: ignore[call-overload]  # whose?
    assert_spawned(session, charge, count="one")  # type: ignore[call-overload]  # a number
    idle = run_until_idle(engine, BillingTask, limit=10, timeout=2.5, raise_errors=True)
    assert_type(idle, Idle)
    assert_type([run.state for run in idle.runs], list[TaskState | None])
    assert_type([run.error for run in idle.runs], list[BaseException | None])
    assert_type(idle.remaining[0].due, datetime | None)
    assert_type(idle.next_due, datetime | None)
    run_until_idle(engine, "billing")  # type: ignore[arg-type]  # a queue is its model
    with clock(engine) as time:
        assert_type(time, Clock)
        assert_type(time.advance(timedelta(days=7)), datetime)
        time.advance(7)  # type: ignore[arg-type]  # of what?
    assert_type(task_factory(BillingTask, session)(running=True), BillingTask)


async def async_tests(engine: AsyncEngine, session: AsyncSession) -> None:
    assert_type(await assert_spawned_async(session, charge, order_id=7), BillingTask)
    assert_type(await assert_spawned_async(engine, BillingTask, "charge"), BillingTask)
    await assert_not_spawned_async(engine, charge)
    assert_type(await run_until_idle_async(engine, BillingTask), Idle)
    with clock(engine) as time:
        found: Any = time.now()
        assert found
