"""An application with a schema of its own, and a naming convention."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_durable import DurableTask


class Base(DeclarativeBase):
    metadata = MetaData(
        schema="app",
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        },
    )


class Order(Base):
    __tablename__ = "orders"
    __table_args__ = (CheckConstraint("total >= 0", name="total"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int] = mapped_column(index=True)


class BillingTask(DurableTask, Base):
    __queue__ = "billing"
    order_id: Mapped[int | None] = mapped_column(ForeignKey("app.orders.id"), index=True)
