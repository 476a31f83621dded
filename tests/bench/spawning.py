"""Spawning: one by one, duplicates, and in bulk; each against the bare statements that it can't do without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from uuid import uuid4

import psycopg
from sqlalchemy import Engine, bindparam, select, text
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask
from sa_durable.ids import uuid7
from sa_durable.models.predicates import HELD
from tests.bench.models import HANDLERS

RETRY = {"kind": "exponential", "base_seconds": 5.0, "factor": 2.0, "cap_seconds": 300.0, "jitter": 0.2}
_numbers = count(1)
_run = uuid4().hex[:8]  # keys of this run are nobody else's


def fresh_key() -> str:
    return f"bench:{_run}:{next(_numbers)}"


def _row(key: str, number: int) -> dict[str, object]:
    """The row that a spawn writes, column by column."""
    return {
        "id": uuid7(),
        "name": "charge",
        "params": {"order_id": number},
        "headers": None,
        "state": "pending",
        "priority": 0,
        "run_id": uuid7(),
        "max_attempts": 5,
        "retry": RETRY,
        "parent_queue": None,
        "parent_id": None,
        "idempotency_key": key,
        "key_hold": "active",
        "key_expires_at": None,
    }


def _bare_insert(model: type[DurableTask]):
    table = model.__table__
    return (
        pg_insert(table)
        .on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))
        .returning(table.c.id, table.c.state)
    )


def core_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """Limit: bare SQLAlchemy Core, a transaction for each row."""
    statement = _bare_insert(model)

    def run() -> None:
        for i in range(number):
            with engine.begin() as connection:
                assert connection.execute(statement, _row(fresh_key(), i)).first() is not None

    return run


def session_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """The same bare statement, in a Session and a transaction for each."""
    statement = _bare_insert(model)

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                assert session.execute(statement, _row(fresh_key(), i)).first() is not None

    return run


def durable_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """Durable.spawn with a fresh key, a Session and a transaction for each."""
    handler = HANDLERS[model]

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                spawned = Durable(session).spawn(handler.call(order_id=i), idempotency_key=fresh_key())
                assert spawned.created

    return run


def core_duplicate(engine: Engine, model: type[DurableTask], number: int, key: str) -> Callable[[], object]:
    """Limit: a bare insert that conflicts, and a bare select by key."""
    statement, found = _bare_insert(model), _bare_select(model)

    def run() -> None:
        for i in range(number):
            with engine.begin() as connection:
                assert connection.execute(statement, _row(key, i)).first() is None
                assert connection.execute(found, {"key": key}).first() is not None

    return run


def session_duplicate(
    engine: Engine, model: type[DurableTask], number: int, key: str
) -> Callable[[], object]:
    """The same bare statements, in a Session."""
    statement, found = _bare_insert(model), _bare_select(model)

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                assert session.execute(statement, _row(key, i)).first() is None
                assert session.execute(found, {"key": key}).first() is not None

    return run


def _bare_select(model: type[DurableTask]):
    table = model.__table__
    return select(table.c.id, table.c.run_id, table.c.attempt, table.c.state, table.c.name).where(
        table.c.idempotency_key == bindparam("key", type_=table.c.idempotency_key.type), text(HELD)
    )


def durable_duplicate(
    engine: Engine, model: type[DurableTask], number: int, key: str
) -> Callable[[], object]:
    handler = HANDLERS[model]

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                assert not Durable(session).spawn(handler.call(order_id=i), idempotency_key=key).created

    return run


def hold_key(engine: Engine, model: type[DurableTask]) -> str:
    key = fresh_key()
    with Session(engine) as session, session.begin():
        Durable(session).spawn(HANDLERS[model].call(order_id=1), idempotency_key=key)
    return key


_UNNEST = """
    INSERT INTO {table} (
        id, name, params, headers, state, priority, available_at, created_at, run_id, max_attempts, retry,
        parent_queue, parent_id, idempotency_key, key_hold, key_expires_at
    )
    SELECT id, 'charge', params, NULL, 'pending', 0, statement_timestamp(), statement_timestamp(), run_id, 5,
           %(retry)s::jsonb, NULL, NULL, key, 'active', NULL
    FROM unnest(%(ids)s::uuid[], %(params)s::jsonb[], %(runs)s::uuid[], %(keys)s::text[]) AS n(id, params, run_id, key)
    ON CONFLICT (idempotency_key) WHERE {held} DO NOTHING
    RETURNING id
"""


def raw_bulk(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """Limit: psycopg, INSERT ... SELECT FROM unnest of the same rows in chunks of 1000, one transaction."""
    url = engine.url
    dsn = f"host={url.query['host']} dbname={url.database} user={url.username}"
    connection = psycopg.connect(dsn)
    statement = _UNNEST.format(table=model.__table__.name, held=HELD)
    retry = json.dumps(RETRY)

    def run() -> None:
        with connection.transaction():
            for start in range(0, number, 1000):
                chunk = range(start, min(start + 1000, number))
                done = connection.execute(
                    statement,
                    {
                        "ids": [uuid7() for _ in chunk],
                        "params": [json.dumps({"order_id": i}) for i in chunk],
                        "runs": [uuid7() for _ in chunk],
                        "keys": [fresh_key() for _ in chunk],
                        "retry": retry,
                    },
                ).fetchall()
                assert len(done) == len(chunk)

    return run


def durable_bulk(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    handler = HANDLERS[model]

    def run() -> None:
        with Session(engine) as session, session.begin():
            calls = [handler.call(order_id=i).using(idempotency_key=fresh_key()) for i in range(number)]
            assert all(spawned.created for spawned in Durable(session).spawn_many(calls))

    return run


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
