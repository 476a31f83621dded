"""An application as users write one, and what mypy and pyright make of it. Never run: test_types.py checks it.

Each `type: ignore` stands on a mistake that a type checker must find; one that finds none reports the comment.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import ForeignKey, Select, select
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
    scoped_session,
)

from sa_durable import (
    AsyncDurable,
    AsyncTaskContext,
    Call,
    CleanedUp,
    Durable,
    DurableQueue,
    DurableRun,
    DurableTask,
    Exponential,
    Fail,
    Handler,
    Hold,
    NoRetry,
    OnDuplicate,
    SpawnResult,
    Step,
    TaskContext,
    TaskError,
    TaskResult,
    TaskRun,
    TaskState,
    current_context,
    once_key,
)
from sa_durable.telemetry import RunningTask, Spawning, around_run, before_spawn, remove_hook


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[Decimal]
    tasks: Mapped[list[BillingTask]] = relationship(back_populates="order")


class BillingTask(DurableTask, Base):
    __queue__ = "billing"
    __spawn_defaults__ = {"priority": 10, "retry": NoRetry(), "max_attempts": None}  # noqa: RUF012 - as users write it
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="tasks")


class MailTask(DurableTask, Base):
    __queue__ = "mail"
    __run_defaults__ = {"timeout": timedelta(minutes=5), "non_retryable": (LookupError,)}  # noqa: RUF012 - as above
    __spawn_defaults__ = {"hold": 7}  # type: ignore[typeddict-item]  # no hold  # noqa: RUF012 - as an application writes it


class DataclassBase(MappedAsDataclass, DeclarativeBase, kw_only=True):
    pass


class ExportTask(DurableTask, DataclassBase):
    __queue__ = "exports"
    tenant: Mapped[str] = mapped_column(default="")


@dataclass(frozen=True)
class Receipt:
    number: int
    amount: Decimal


class Context:
    """Stands for the context: handlers may annotate it as they like."""


# Handlers: the first parameter is left out of a call, an awaitable's result is what counts.


@BillingTask.handler(max_attempts=5, retry=Exponential(base=timedelta(seconds=1)))
def charge(ctx: Context, order_id: int, amount: Decimal = Decimal(1), *, note: str = "") -> Receipt:
    return Receipt(order_id, amount)


@MailTask.handler("send", priority=5, headers={"source": "shop"}, hold="forever", key_ttl=timedelta(days=1))
async def send_mail(ctx: Context, to: str) -> int:
    return len(to)


@MailTask.handler()
def no_params(ctx: Context) -> None: ...


@ExportTask.handler(only_once=True)
async def export(ctx: Context, since: datetime) -> list[UUID]:
    return []


@MailTask.handler(max_tries=5)  # type: ignore[call-arg]  # no such option
def misspelt(ctx: Context) -> None: ...


@MailTask.handler(priority="high")  # type: ignore[arg-type]  # priority is a number
def important(ctx: Context) -> None: ...


@MailTask.handler(retry="often")  # type: ignore[arg-type]  # a policy, not a word
def insistent(ctx: Context) -> None: ...


@MailTask.handler()  # type: ignore[arg-type]  # a handler takes the context
def without_context() -> None: ...


def handlers() -> None:
    assert_type(charge.call(7), Call[BillingTask, Receipt])
    assert_type(charge.call(order_id=7, amount=Decimal(2), note="x"), Call[BillingTask, Receipt])
    assert_type(send_mail.call("a@example.org"), Call[MailTask, int])
    assert_type(no_params.call(), Call[MailTask, None])
    assert_type(export.call(datetime(2026, 1, 1, tzinfo=UTC)), Call[ExportTask, list[UUID]])
    assert_type(no_params, Handler[MailTask, [], None])
    assert_type(charge.task(order_id=7), BillingTask)
    assert_type(charge.call(7).using(idempotency_key="charge:7"), Call[BillingTask, Receipt])
    assert_type(charge.name, str)
    assert_type(charge.is_async, bool)

    charge.call("seven")  # type: ignore[arg-type]  # order_id is an int
    charge.call()  # type: ignore[call-arg]  # order_id is missing
    charge.call(7, Decimal(1), "x")  # type: ignore[call-arg]  # note is keyword-only
    charge.call(order=7)  # type: ignore[call-arg]  # no such parameter
    charge.call(Context(), 7)  # type: ignore[arg-type]  # the context isn't the caller's to give
    charge.task(order_id=None)  # type: ignore[arg-type]  # order_id is an int
    charge.call(7).using(idempotency="x")  # type: ignore[call-arg]  # no such option
    charge.call(7).name = "other"  # type: ignore[misc]  # calls are frozen
    send_mail.call(b"bytes")  # type: ignore[arg-type]  # async handlers are checked too


def rows(session: Session) -> None:
    states: Select[UUID, str] = select(BillingTask.id, BillingTask.state)
    assert_type(states, Select[UUID, str])
    for task_id, state in session.execute(states):
        assert_type(task_id, UUID)
        assert_type(state, str)
    mine = select(BillingTask).where(BillingTask.state == TaskState.FAILED, BillingTask.order_id == 7)
    assert_type(session.scalars(mine).all(), Sequence[BillingTask])
    own = select(BillingTask.order_id, Order.total).join(BillingTask.order)
    assert_type(own, Select[int | None, Decimal])
    assert_type(session.scalars(select(ExportTask.tenant)).one(), str)

    assert_type(BillingTask.Run, type[DurableRun])
    assert_type(BillingTask.Queue, type[DurableQueue])
    history = select(BillingTask.id, BillingTask.Run.attempt, BillingTask.Run.ended_at).join(
        BillingTask.Run, BillingTask.Run.task_id == BillingTask.id
    )
    assert_type(history, Select[UUID, int, datetime])
    assert_type(select(BillingTask.Checkpoint.name, BillingTask.Event.emitted_at), Select[str, datetime])
    assert_type(select(BillingTask.Wait.timeout_at), Select[datetime | None])

    task = session.get_one(BillingTask, UUID(int=1))
    assert_type(task, BillingTask)
    assert_type(task.id, UUID)
    assert_type(task.attempt, int)
    assert_type(task.max_attempts, int | None)
    assert_type(task.finished_at, datetime | None)
    assert_type(task.error, dict[str, Any] | None)
    assert_type(task.idempotency_key, str | None)
    assert_type(task.order, Order | None)
    assert_type(task.runs, list[DurableRun])
    assert_type(task.runs[0].ended_at, datetime)
    assert_type(Order(id=7).tasks, list[BillingTask])
    task.atempt  # type: ignore[attr-defined]  # no such column  # noqa: B018 - only its type matters


def objects(order: Order) -> None:
    order.tasks.append(charge.task(order_id=7))
    order.tasks.append(send_mail.task(to="x"))  # type: ignore[arg-type]  # another queue's task
    assert_type(ExportTask(tenant="x"), ExportTask)
    ExportTask(name="x")  # type: ignore[call-arg]  # the library's columns are no arguments of a dataclass


def spawning(session: Session, registry: scoped_session[Session]) -> None:
    durable = Durable(session)
    Durable(registry)
    spawned = durable.spawn(charge.call(7), idempotency_key="charge:7", hold=Hold.FOREVER, strict=True)
    assert_type(spawned, SpawnResult[Receipt])
    assert_type(spawned.task_id, UUID)
    assert_type(spawned.created, bool)
    assert_type(spawned.state, TaskState)
    assert_type(durable.spawn(no_params.call(), only_once=True), SpawnResult[None])
    assert_type(durable.spawn(send_mail.call("x"), delay=timedelta(hours=1)), SpawnResult[int])
    assert_type(durable.spawn(BillingTask, "charge", {"order_id": 7}), SpawnResult[Any])
    assert_type(
        durable.spawn_many([charge.call(i) for i in range(3)], on_duplicate=OnDuplicate.RAISE),
        Sequence[SpawnResult[Receipt]],
    )

    result = durable.result(spawned)
    assert_type(result, TaskResult[Receipt])
    assert_type(result.value, Receipt | None)
    assert_type(result.error, TaskError | None)
    assert_type(durable.result(BillingTask, UUID(int=1)), TaskResult[Any])
    assert_type(durable.result(charge.task(7)), TaskResult[Any])
    assert_type(durable.find_by_key(BillingTask, once_key("charge", {"order_id": 7})), BillingTask | None)
    assert_type(durable.release_key(BillingTask, "charge:7"), bool)
    assert_type(durable.cancel(spawned), bool)
    assert_type(durable.cancel(BillingTask, UUID(int=1)), bool)
    again = durable.retry(spawned, detach=True)
    assert_type(again, SpawnResult[Receipt])
    assert_type(durable.retry(BillingTask, UUID(int=1), as_new=True), SpawnResult[Any])
    assert_type(durable.runs(again), list[TaskRun])
    assert_type(durable.count_ready(BillingTask, ["charge"]), int)
    assert_type(durable.clean_up(BillingTask, older_than=timedelta(days=30)), CleanedUp)
    durable.clean_up(BillingTask)  # type: ignore[call-arg]  # how old is a choice

    durable.spawn(charge)  # type: ignore[call-overload]  # the handler, not a call of it
    durable.spawn(charge.call(7), idempotent_key="x")  # type: ignore[call-overload]  # misspelt
    durable.spawn(charge.call(7), delay=30)  # type: ignore[call-overload]  # a duration, not a number
    durable.find_by_key(Order, "x")  # type: ignore[type-var]  # not a queue
    durable.cancel("charge:7")  # type: ignore[call-overload]  # a key is no task


async def spawning_async(session: AsyncSession, registry: async_scoped_session[AsyncSession]) -> None:
    durable = AsyncDurable(session)
    AsyncDurable(registry)
    spawned = await durable.spawn(send_mail.call("x"), idempotency_key="x", key_ttl=timedelta(days=1))
    assert_type(spawned, SpawnResult[int])
    assert_type(await durable.spawn(export.call(datetime(2026, 1, 1, tzinfo=UTC))), SpawnResult[list[UUID]])
    assert_type(await durable.spawn(MailTask, "send", {"to": "x"}), SpawnResult[Any])
    assert_type(await durable.spawn_many([send_mail.call("x")]), Sequence[SpawnResult[int]])
    assert_type((await durable.result(spawned)).value, int | None)
    assert_type(await durable.find_by_key(MailTask, "x"), MailTask | None)
    assert_type(await durable.cancel(spawned), bool)
    assert_type(await durable.runs(spawned), list[TaskRun])
    assert_type(await durable.count_ready(BillingTask), int)
    assert_type(await durable.clean_up(BillingTask, older_than=timedelta(days=30)), CleanedUp)

    AsyncDurable(Session())  # type: ignore[arg-type]  # Durable is for a Session
    await durable.spawn(send_mail.call("x"), delay=30)  # type: ignore[call-overload]  # a duration


# How handlers run, and what they are given.


class CardDeclined(Exception):
    __durable_fields__ = ("code",)
    code = "51"


@BillingTask.handler(timeout=timedelta(seconds=30), non_retryable=(CardDeclined, KeyError), max_attempts=3)
def settle(ctx: TaskContext, order_id: int) -> Receipt:
    assert_type(ctx.now(), datetime)
    assert_type(ctx.random(), float)
    assert_type(ctx.uuid7(), UUID)
    ctx.heartbeat()
    assert_type(ctx.headers, Mapping[str, Any])
    step = ctx.begin_step("pay", returns=Receipt)
    assert_type(step, Step[Receipt])
    assert_type(step.done, bool)
    if not step.done:
        assert_type(ctx.complete_step(step, Receipt(1, Decimal(1))), Receipt)
        ctx.complete_step(step, "paid")  # type: ignore[misc]  # a Receipt was announced
    assert_type(ctx.begin_step("anything"), Step[Any])
    if order_id < 0:
        raise Fail("card declined", code="51", amount=Decimal(1))
    return step.value


@MailTask.handler(timeout=None, non_retryable=CardDeclined)
async def deliver(ctx: AsyncTaskContext, to: str) -> None:
    assert_type(await ctx.now(), datetime)
    assert_type(await ctx.random(), float)
    assert_type(await ctx.uuid7(), UUID)
    await ctx.heartbeat()
    step = ctx.begin_step("send", returns=int)
    assert_type(await ctx.complete_step(step, 7), int)


@MailTask.handler(timeout=30)  # type: ignore[arg-type]  # a duration, not a number
def hasty(ctx: TaskContext) -> None: ...


@MailTask.handler(non_retryable=("CardDeclined",))  # type: ignore[arg-type]  # classes, not names
def stubborn(ctx: TaskContext) -> None: ...


def below_a_handler(error: TaskError) -> None:
    assert_type(current_context(), TaskContext | AsyncTaskContext)
    assert_type(current_context(TaskContext), TaskContext)
    assert_type(current_context(AsyncTaskContext), AsyncTaskContext)
    assert_type(error.fields, Mapping[str, Any] | None)
    current_context(Order)  # type: ignore[type-var]  # no context


@before_spawn
def inject(spawning: Spawning) -> None:
    spawning.headers["traceparent"] = f"{spawning.queue}.{spawning.task}"


@around_run
@contextmanager
def restore(task: RunningTask) -> Generator[None, None, None]:
    assert_type(task.headers, Mapping[str, Any])
    assert_type(task.task_id, UUID)
    yield


@around_run  # type: ignore[arg-type]  # no context manager
def forgets(task: RunningTask) -> None: ...


def without_hooks(context: TaskContext, async_context: AsyncTaskContext) -> None:
    remove_hook(inject)
    restore(context)
    restore(async_context)
