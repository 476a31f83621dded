"""An application on asyncpg whose Base makes dataclasses."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from sa_durable import DurableTask


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    owner: Mapped[str]


class ReportTask(DurableTask, Base):
    __queue__ = "reports"
    pages: Mapped[int | None] = mapped_column(default=None)


class ImportTask(DurableTask, Base):
    __queue__ = "imports"
