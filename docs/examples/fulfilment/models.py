"""The shop's tables, and its three queues."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sa_durable import DurableTask


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"
    sku: Mapped[str] = mapped_column(primary_key=True)
    price: Mapped[Decimal]
    available: Mapped[int]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    sku: Mapped[str] = mapped_column(ForeignKey("products.sku"))
    quantity: Mapped[int]
    total: Mapped[Decimal]
    state: Mapped[str] = mapped_column(default="placed")  # placed, paid, reserved, then shipped or refunded
    tasks: Mapped[list[OrderTask]] = relationship(back_populates="order")


class Payment(Base):
    """A payment of the customer, or a refund, which is negative.

    No constraint limits it to one per order: `ctx.transaction` writes it once.
    """

    __tablename__ = "payments"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    amount: Mapped[Decimal]


class Reservation(Base):
    __tablename__ = "reservations"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    quantity: Mapped[int]
    state: Mapped[str] = mapped_column(default="held")  # held, then shipped or released


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    box: Mapped[str]
    tracking: Mapped[str]


class Mail(Base):
    """A mail that was sent to a customer."""

    __tablename__ = "mails"
    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[str]
    text: Mapped[str]


class OrderTask(DurableTask, Base):
    __queue__ = "orders"
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="tasks")


class ParcelTask(DurableTask, Base):
    __queue__ = "parcels"


class MailTask(DurableTask, Base):
    __queue__ = "mail"
