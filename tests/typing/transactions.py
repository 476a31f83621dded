"""As app.py: rows and values that are written exactly once."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from decimal import Decimal
from typing import Any, assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sa_durable import AsyncTaskContext, Call, DurableTask, TaskContext, Worker


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[Decimal]


class PayTask(DurableTask, Base):
    __queue__ = "pay"


def book(session: Session, amount: Decimal, *, note: str = "") -> int:
    session.add(payment := Payment(amount=amount))
    session.flush()
    return payment.id


async def abook(session: AsyncSession, amount: Decimal, *, note: str = "") -> int:
    session.add(payment := Payment(amount=amount))
    await session.flush()
    return payment.id


def untyped(session: Session, amount: Decimal) -> Any:
    return amount


@PayTask.handler()
def pay(ctx: TaskContext, amount: Decimal) -> int:
    assert_type(ctx.transaction("book", book, amount), int)
    assert_type(ctx.transaction("book", book, amount=amount, note="x"), int)
    assert_type(ctx.transaction("first", lambda session: session.get_one(Payment, 1).amount), Decimal)
    assert_type(ctx.transaction("typed", untyped, amount, returns=Decimal), Decimal)
    ctx.transaction("book", book, "7.50")  # type: ignore[call-overload]  # an amount is a Decimal
    ctx.transaction("book", book)  # type: ignore[call-overload]  # which amount?
    ctx.transaction("book", abook, amount)  # type: ignore[call-overload]  # an AsyncSession is for async handlers
    return ctx.transaction("book", book, amount)


@PayTask.handler()
async def apay(ctx: AsyncTaskContext, amount: Decimal) -> int:
    assert_type(await ctx.transaction("book", abook, amount, note="x"), int)
    assert_type(await ctx.transaction("plain", book, amount, note="x"), int)
    assert_type(await ctx.transaction("typed", untyped, amount, returns=Decimal), Decimal)
    await ctx.transaction("book", abook, "7.50")  # type: ignore[call-overload]  # an amount is a Decimal
    return await ctx.transaction("book", abook, amount)


@PayTask.handler(transactional=True)
def refund(ctx: TaskContext, payment_id: int) -> Decimal:
    assert_type(ctx.session, Session)
    return ctx.session.get_one(Payment, payment_id).amount


@PayTask.handler(transactional=True, max_attempts=3)
async def arefund(ctx: AsyncTaskContext, payment_id: int) -> Decimal:
    assert_type(ctx.session, AsyncSession)
    return (await ctx.session.get_one(Payment, payment_id)).amount


def workers(engine: Engine, async_engine: AsyncEngine) -> None:
    assert_type(refund.call(payment_id=7), Call[PayTask, Decimal])
    assert_type(arefund.call(payment_id=7), Call[PayTask, Decimal])
    plain, asynchronous = sessionmaker(engine), async_sessionmaker(async_engine)
    Worker(engine, [PayTask], session_factory=plain, async_session_factory=asynchronous)
    Worker(engine, [PayTask], session_factory=scoped_session(plain))
    Worker(engine, [PayTask], session_factory=asynchronous)  # type: ignore[arg-type]  # async sessions
    Worker(engine, [PayTask], session_factory=Session(engine))  # type: ignore[arg-type]  # one session for all
