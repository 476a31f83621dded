"""The demo application's models: its own tables for payments, and two queues."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from ..models import DurableTask


class Base(DeclarativeBase):
    """The application's declarative base. Its metadata also has the tables of the queues."""


class Payment(Base):
    """A payment that the provider's webhooks report."""

    __tablename__ = "payments"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    """The provider's id, "pay_..."."""
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    currency: Mapped[str] = mapped_column(Text)
    tasks: Mapped[list[PaymentTask]] = relationship(back_populates="payment")


class PaymentTask(DurableTask, Base):
    """The handling of a payment event: one task per event. The event's id is its idempotency key."""

    __queue__ = "payments"

    payment_id: Mapped[str | None] = mapped_column(ForeignKey("payments.id"))
    payment: Mapped[Payment | None] = relationship(back_populates="tasks")


class MailTask(DurableTask, Base):
    """A mail to be sent."""

    __queue__ = "mail"


class LedgerEntry(Base):
    """The booking of an event: the effect that must happen exactly once."""

    __tablename__ = "ledger"

    event_id: Mapped[str] = mapped_column(Text, primary_key=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"))
    state: Mapped[str] = mapped_column(Text)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))


class StepRun(Base):
    """One call of a step function, successful or not. The demo counts them."""

    __tablename__ = "step_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(Text)
    step: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int]
    pid: Mapped[int]
