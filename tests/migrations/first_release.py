"""The first version of a task model, without keys, and the statements of its spawners and workers."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

TIME = DateTime(timezone=True)
NOW = func.statement_timestamp()
tasks = Table(
    "durable_payments_tasks",
    MetaData(),
    Column("id", Uuid(), primary_key=True),
    Column("name", Text(), nullable=False),
    Column("params", JSONB(), nullable=False),
    Column("headers", JSONB()),
    Column("state", Text(), nullable=False),
    Column("priority", SmallInteger(), nullable=False),
    Column("available_at", TIME),
    Column("created_at", TIME, nullable=False),
    Column("first_started_at", TIME),
    Column("finished_at", TIME),
    Column("run_id", Uuid(), nullable=False),
    Column("attempt", Integer(), nullable=False),
    Column("max_attempts", Integer()),
    Column("retry", JSONB()),
    Column("started_at", TIME),
    Column("claimed_by", Text()),
    Column("token", BigInteger(), nullable=False),
    Column("lease_expires_at", TIME),
    Column("result", JSONB()),
    Column("error", JSONB()),
)


def spawn(connection: Connection, name: str, key: str) -> None:
    """Insert a task; the key is no more than a header then."""
    values = {
        "id": uuid4(),
        "run_id": uuid4(),
        "name": name,
        "params": {},
        "headers": {"idempotency_key": key},
    }
    connection.execute(
        insert(tasks).values(state="pending", priority=0, available_at=NOW, created_at=NOW), values
    )


def claim(connection: Connection, worker: str, limit: int) -> list[Any]:
    ready = (
        select(tasks.c.id)
        .where(text("state = 'pending'"), tasks.c.name == "charge")
        .order_by(tasks.c.priority, tasks.c.available_at, tasks.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = (
        update(tasks)
        .where(tasks.c.id == func.any(func.array(ready.scalar_subquery())))
        .values(
            state="running",
            token=tasks.c.token + 1,
            claimed_by=worker,
            lease_expires_at=NOW + text("interval '1 min'"),
            started_at=NOW,
            first_started_at=func.coalesce(tasks.c.first_started_at, NOW),
        )
        .returning(tasks.c.id, tasks.c.token)
    )
    return list(connection.execute(claimed))


def extend(connection: Connection, claims: list[Any]) -> None:
    held = update(tasks).where(tasks.c.id.in_([row.id for row in claims]), text("state = 'running'"))
    connection.execute(held.values(lease_expires_at=NOW + text("interval '1 min'")))


def complete(connection: Connection, claims: list[Any]) -> int:
    """Returns how many still were ours."""
    done = 0
    for row in claims:
        ours = (tasks.c.id == row.id, tasks.c.token == row.token, text("state = 'running'"))
        ended = update(tasks).where(*ours).values(
            state="completed", result={"by": "first"}, finished_at=NOW, lease_expires_at=None
        )  # fmt: skip
        done += connection.execute(ended).rowcount
    return done
