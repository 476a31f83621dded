"""The demo application's models: payments of its own, and two queues beside them."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from ..models import DurableTask


class Base(DeclarativeBase):
    """The application's own base. Its metadata has the application's tables and those of its queues."""


class Payment(Base):
    """A payment, as the provider's webhooks tell of it."""

    __tablename__ = "payments"

    id: Mapped[str] = mapped_column(Text, primary_key=True)  # the provider's, "pay_..."
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    currency: Mapped[str] = mapped_column(Text)
    tasks: Mapped[list[PaymentTask]] = relationship(back_populates="payment")


class PaymentTask(DurableTask, Base):
    """What has to be done about a payment: one task per webhook delivery, keyed by the event's id."""

    __queue__ = "payments"

    payment_id: Mapped[str | None] = mapped_column(ForeignKey("payments.id"))
    payment: Mapped[Payment | None] = relationship(back_populates="tasks")


class MailTask(DurableTask, Base):
    """Mail to be sent."""

    __queue__ = "mail"


class LedgerEntry(Base):
    """What was booked for an event: the effect that must happen once."""

    __tablename__ = "ledger"

    event_id: Mapped[str] = mapped_column(Text, primary_key=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"))
    state: Mapped[str] = mapped_column(Text)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class StepRun(Base):
    """That a step's function was called, whatever became of it: the demo counts them."""

    __tablename__ = "step_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(Text)
    step: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int]
    pid: Mapped[int]
