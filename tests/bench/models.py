"""Two queues of the same shape: one stays nearly empty, the other holds a million tasks."""

from __future__ import annotations

from sqlalchemy import Engine, text
from sqlalchemy.orm import DeclarativeBase

from sa_durable import DurableTask


class Base(DeclarativeBase):
    pass


class SmallTask(DurableTask, Base):
    __queue__ = "small"


class BigTask(DurableTask, Base):
    __queue__ = "big"


def charge(ctx: object, order_id: int, note: str = "") -> None: ...


HANDLERS = {model: model.handler()(charge) for model in (SmallTask, BigTask)}


def fill(engine: Engine, rows: int) -> None:
    """`rows` tasks with keys: nine of ten completed, the rest sleeping for a year."""
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO durable_big_tasks (
                    id, name, params, state, available_at, run_id, idempotency_key, key_hold, finished_at,
                    first_started_at
                )
                SELECT gen_random_uuid(), 'charge', jsonb_build_object('order_id', n),
                       CASE WHEN n % 10 = 0 THEN 'sleeping' ELSE 'completed' END,
                       CASE WHEN n % 10 = 0 THEN statement_timestamp() + interval '1 year' END,
                       gen_random_uuid(), 'filled:' || n, CASE WHEN n % 2 = 0 THEN 'forever' ELSE 'active' END,
                       CASE WHEN n % 10 <> 0 THEN statement_timestamp() END,
                       CASE WHEN n % 10 <> 0 THEN statement_timestamp() END
                FROM generate_series(1, :rows) AS n
            """),
            {"rows": rows},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE durable_big_tasks"))
        connection.execute(text("CHECKPOINT"))
