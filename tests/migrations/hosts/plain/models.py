"""An application with a table of its own, and a queue with a column of its own."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_durable import DurableTask


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class MailTask(DurableTask, Base):
    __queue__ = "mail"
    __table_args__ = (Index("mail_by_customer", "customer_id"),)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))
