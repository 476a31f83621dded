"""The tables of a queue: columns, constraints and indexes.

Each index serves the statements that tests/plans/test_indexes.py lists.

They use stock types only, so that `alembic revision --autogenerate` renders them without a plugin: no enums,
functions or triggers. Heartbeats change lease_expires_at alone and often, so no index has that column: they
stay HOT updates.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Interval,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import MappedColumn, mapped_column
from sqlalchemy.schema import SchemaItem

from ..ids import uuid7
from ..values import TaskState
from .names import QUEUES_COMMENT, QUEUES_TABLE, Role, comment, named, table_name
from .predicates import HELD, LIMITED, PENDING, RUNNING, SLEEPING

TIME = DateTime(timezone=True)
KEY = Text(collation="C")  # compared byte by byte, whatever the database's locale
NOW = text("statement_timestamp()")


def task_columns() -> dict[str, MappedColumn[Any]]:
    """Return the library's columns of a task model, by attribute.

    The columns of idempotency keys come last, where an upgrade of an existing table adds them. The
    application's own columns come before those.
    """

    def column(type_: Any, *, nullable: bool = False, **kw: Any) -> MappedColumn[Any]:
        return mapped_column(type_, nullable=nullable, sort_order=kw.pop("sort_order", -100), **kw)

    return {
        "id": column(Uuid(), primary_key=True, default=uuid7),
        "name": column(Text()),
        "params": column(JSONB()),
        "headers": column(JSONB(none_as_null=True), nullable=True),
        "state": column(Text(), server_default=TaskState.PENDING.value),
        "priority": column(SmallInteger(), server_default="0"),
        "available_at": column(TIME, nullable=True, server_default=NOW),
        "created_at": column(TIME, server_default=NOW),
        "first_started_at": column(TIME, nullable=True),
        "finished_at": column(TIME, nullable=True),
        "run_id": column(Uuid(), default=uuid7),
        "attempt": column(Integer(), server_default="1"),
        "max_attempts": column(Integer(), nullable=True, server_default="5"),
        "retry": column(JSONB(none_as_null=True), nullable=True),
        "started_at": column(TIME, nullable=True),
        "claimed_by": column(Text(), nullable=True),
        "token": column(BigInteger(), server_default="0"),
        "lease_expires_at": column(TIME, nullable=True),
        "result": column(JSONB(none_as_null=False), nullable=True),
        "error": column(JSONB(none_as_null=True), nullable=True),
        "parent_queue": column(Text(), nullable=True),
        "parent_id": column(Uuid(), nullable=True),
        "awaited": column(Boolean(), server_default=text("false")),
        "max_duration": column(Interval(), nullable=True),
        "cancel_at": column(TIME, nullable=True),
        "idempotency_key": column(KEY, nullable=True, sort_order=1000),
        "key_hold": column(Text(), nullable=True, sort_order=1000),
        "key_expires_at": column(TIME, nullable=True, sort_order=1000),
    }


def task_args(queue: str) -> tuple[SchemaItem, ...]:
    """Return the constraints and indexes of a queue's task table."""
    table = table_name(queue, Role.TASKS)
    states = ", ".join(f"'{state}'" for state in TaskState)
    return (
        CheckConstraint(f"state IN ({states})", name=named("ck", table, "state")),
        CheckConstraint(KEY_CHECK, name=named("ck", table, "key")),
        # ON CONFLICT of a spawn, and the search for a key's holder
        Index(named("uq", table, "key"), "idempotency_key", unique=True, postgresql_where=text(HELD)),
        # Claims: one scan for each known name, so that tasks with unknown names cost nothing
        Index(
            named("ix", table, "ready"),
            "name",
            "priority",
            "available_at",
            "id",
            postgresql_where=text(PENDING),
        ),
        # Sleepers that are due
        Index(named("ix", table, "due"), "available_at", postgresql_where=text(SLEEPING)),
        # Expired leases, and everything that a worker writes for its claims
        Index(named("ix", table, "running"), "id", postgresql_where=text(RUNNING)),
        # Descendants of a cancelled task
        Index(named("ix", table, "parent"), "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        # Tasks past their deadline
        Index(named("ix", table, "cancel"), "cancel_at", postgresql_where=text(LIMITED)),
        # Clean-up of ended tasks
        Index(
            named("ix", table, "finished"), "finished_at", postgresql_where=text("finished_at IS NOT NULL")
        ),
    )


# char_length counts characters, as Python's len does. The hold is NULL once the key was released.
KEY_CHECK = (
    "(key_hold IS NULL OR key_hold IN ('queued', 'active', 'succeeded', 'forever')"
    " AND idempotency_key IS NOT NULL)"
    " AND char_length(idempotency_key) BETWEEN 1 AND 255"
)


def info(queue: str, role: Role) -> dict[str, Any]:
    """Return the `Table.info` of a queue's table."""
    return {"sa_durable": {"queue": queue, "role": role.value}}


def sibling_table(metadata: MetaData, queue: str, role: Role, tasks: Table) -> Table:
    """Return the table of runs, checkpoints, events or waits beside `tasks`, in the same schema."""
    table = table_name(queue, role)
    return Table(
        table,
        metadata,
        *_SIBLINGS[role](table, tasks),
        schema=tasks.schema,
        comment=comment(queue, role),
        info=info(queue, role),
    )


def _task_id(tasks: Table, **kw: Any) -> Column[Any]:
    return Column("task_id", Uuid(), ForeignKey(tasks.c.id, ondelete="CASCADE"), nullable=False, **kw)


def _runs(table: str, tasks: Table) -> list[SchemaItem]:
    return [
        Column("id", Uuid(), primary_key=True),
        _task_id(tasks),
        Column("attempt", Integer(), nullable=False),
        Column("state", Text(), nullable=False),
        Column("worker", Text()),
        Column("started_at", TIME),
        Column("lease_expires_at", TIME),
        Column("ended_at", TIME, nullable=False, server_default=NOW),
        Column("error", JSONB(none_as_null=True)),
        CheckConstraint("state IN ('failed', 'cancelled')", name=named("ck", table, "state")),
        # A task's history in order, and no attempt ends twice
        Index(named("uq", table, "attempt"), "task_id", "attempt", unique=True),
    ]


def _checkpoints(_: str, tasks: Table) -> list[SchemaItem]:
    return [
        _task_id(tasks, primary_key=True),
        Column("name", Text(), primary_key=True),
        Column("value", JSONB(none_as_null=False), nullable=False),
        Column("attempt", Integer(), nullable=False),
        Column("created_at", TIME, nullable=False, server_default=NOW),
    ]


def _events(table: str, _: Table) -> list[SchemaItem]:
    return [
        Column("id", Uuid(), primary_key=True, default=uuid7),
        Column("name", Text(), nullable=False),
        Column("payload", JSONB(none_as_null=False), nullable=False),
        Column("emitted_at", TIME, nullable=False, server_default=NOW),
        Column("settled_at", TIME),
        Column("dropped", Boolean(), nullable=False, server_default=text("false")),
        # Events by name, without the dropped rows: a name may have thousands of those
        Index(named("ix", table, "name"), "name", "id", postgresql_where=text("NOT dropped")),
        # Rows of events that no worker has decided yet
        Index(named("ix", table, "unsettled"), "id", postgresql_where=text("settled_at IS NULL")),
        # Clean-up of settled events
        Index(named("ix", table, "settled"), "settled_at", postgresql_where=text("settled_at IS NOT NULL")),
    ]


def _waits(table: str, tasks: Table) -> list[SchemaItem]:
    return [
        _task_id(tasks, primary_key=True),
        Column("step", Text(), primary_key=True),
        Column("event_name", Text(), primary_key=True),
        Column("event_queue", Text(), nullable=False),
        Column("timeout_at", TIME),
        Column("created_at", TIME, nullable=False, server_default=NOW),
        Column("settled", Boolean(), nullable=False, server_default=text("false")),
        # Waits for an event, and the events of other queues that have waits
        Index(named("ix", table, "event"), "event_queue", "event_name", postgresql_where=text("NOT settled")),
        # Waits whose event is settled
        Index(named("ix", table, "settled"), "task_id", "step", postgresql_where=text("settled")),
    ]


_SIBLINGS = {Role.RUNS: _runs, Role.CHECKPOINTS: _checkpoints, Role.EVENTS: _events, Role.WAITS: _waits}


def queues_table(metadata: MetaData, schema: str | None) -> Table:
    """Return the table for the settings of all queues of a metadata and schema. Makes it once."""
    key = f"{schema}.{QUEUES_TABLE}" if schema else QUEUES_TABLE
    if key in metadata.tables:
        return metadata.tables[key]
    return Table(
        QUEUES_TABLE,
        metadata,
        Column("name", Text(), primary_key=True),
        Column("paused_at", TIME),
        Column("retention", Interval()),
        Column("notify_until", TIME),
        schema=schema,
        comment=QUEUES_COMMENT,
        info={"sa_durable": {"role": "queues"}},
    )
