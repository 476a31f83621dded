"""The application that the tests are about: orders, and two queues."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sa_durable import DurableTask, NoRetry
from tests.apps import task_model


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[Decimal] = mapped_column(default=Decimal("9.99"))
    tasks: Mapped[list[BillingTask]] = relationship(back_populates="order")


class Invoice(Base):
    __tablename__ = "invoices"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[UUID | None] = mapped_column(ForeignKey("durable_billing_tasks.id"))
    task: Mapped[BillingTask | None] = relationship()


class BillingTask(DurableTask, Base):
    __queue__ = "billing"
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="tasks")


MailTask = task_model(Base, "MailTask", "mail", __name__)


@BillingTask.handler(max_attempts=3)
def charge(ctx: object, order_id: int, amount: Decimal = Decimal(1)) -> str:
    return f"charged {amount} for {order_id}"


@BillingTask.handler()
def refund(ctx: object, order_id: int) -> str:
    return f"refunded {order_id}"


@MailTask.handler("send", retry=NoRetry(), priority=5, headers={"source": "shop"})
def send_mail(ctx: object, to: str, body: str = "") -> None: ...


@MailTask.handler(delay=timedelta(hours=1))
async def remind(ctx: object, to: str) -> None: ...
