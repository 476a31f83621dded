"""Rows of the release that had no keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine, text

PAYMENTS = "durable_payments_tasks"
SOURCE = "headers->>'idempotency_key'"


def add(engine: Engine, rows: Iterable[Mapping[str, Any]], table: str = PAYMENTS) -> list[UUID]:
    """Insert rows, each created a second after the previous one. Returns their ids.

    `key` is stored in a header. The ids are random: only `created_at` says how old a row is.
    """
    statement = text(
        f"INSERT INTO {table} (id, name, params, headers, state, run_id, created_at, first_started_at) VALUES (:id,"
        " 'charge', '{}', jsonb_build_object('idempotency_key', CAST(:key AS text)), :state, :id,"
        " TIMESTAMPTZ '2026-01-01' + make_interval(secs => :age), :first_started_at)"
    )
    filled = [
        {"id": uuid4(), "key": None, "state": "pending", "first_started_at": None, "age": age, **row}
        for age, row in enumerate(rows)
    ]
    with engine.begin() as connection:
        connection.execute(statement, filled)
    return [row["id"] for row in filled]


def add_many(engine: Engine, number: int, table: str = PAYMENTS) -> None:
    """Insert `number` rows in all states. Nine of ten have a key of their own.

    The tenth has the key of another row, which may be older or younger, terminal or active.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO {table} (id, name, params, headers, state, run_id, created_at)"
            " SELECT gen_random_uuid(), 'charge', '{}', jsonb_build_object('idempotency_key', 'evt_' ||"
            " CASE WHEN n %% 10 = 0 THEN n / 10 ELSE n END),"
            " (array['pending', 'running', 'sleeping', 'completed', 'failed', 'cancelled'])[1 + (n * 7919) %% 6],"
            " gen_random_uuid(), TIMESTAMPTZ '2026-01-01' + make_interval(secs => (n * 7907) %% 100003)"
            f" FROM generate_series(1, CAST({number} AS bigint)) AS n"
        )


def keys(engine: Engine, table: str = PAYMENTS) -> dict[UUID, str]:
    """Return the keys of the rows that have one."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(f"SELECT id, idempotency_key FROM {table} WHERE idempotency_key IS NOT NULL")
        )
        return {row.id: row.idempotency_key for row in rows}
