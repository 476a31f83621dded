"""Workload 4: spawning by the ten thousand, against psycopg's insert of the same rows from arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask
from sa_durable.ids import uuid7
from sa_durable.models.predicates import HELD
from tests.bench.alternation import Prepared
from tests.bench.models import HANDLERS, SmallTask, filled
from tests.bench.spawning import RETRY, alternating, fresh_key
from tests.bench.workload import Bench, Side

CHUNK = 1000
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


class Keys:
    """Keys for a batch: all fresh, or every other one held already. `renew` before each batch."""

    def __init__(self, engine: Engine, model: type[DurableTask], number: int, *, half_held: bool) -> None:
        self._engine, self._model, self._half_held = engine, model, half_held
        self.keys, self.number = [""] * number, number
        self.fresh = number - number // 2 if half_held else number

    def renew(self) -> None:
        self.keys = [fresh_key() for _ in range(self.number)]
        if self._half_held:
            handler = HANDLERS[self._model]
            held = [handler.call(order_id=-1).using(idempotency_key=key) for key in self.keys[1::2]]
            with Session(self._engine) as session, session.begin():
                Durable(session).spawn_many(held)


def raw_bulk(bench: Bench, model: type[DurableTask], keys: Keys) -> Prepared:
    """Limit: psycopg, INSERT ... SELECT FROM unnest by the thousand, in one transaction. Who holds a key it doesn't ask."""
    connection = bench.enter(_psycopg(bench.engine))
    statement = _UNNEST.format(table=model.__table__.name, held=HELD)
    retry = json.dumps(RETRY)

    def run() -> None:
        new = 0
        with connection.transaction():
            for start in range(0, keys.number, CHUNK):
                chunk = keys.keys[start : start + CHUNK]
                arrays = {
                    "ids": [uuid7() for _ in chunk],
                    "params": [json.dumps({"order_id": i}) for i in range(start, start + len(chunk))],
                    "runs": [uuid7() for _ in chunk],
                    "keys": chunk,
                    "retry": retry,
                }
                new += len(connection.execute(statement, arrays).fetchall())
        assert new == keys.fresh

    return Prepared(keys.renew, run)


@contextmanager
def _psycopg(engine: Engine) -> Iterator[psycopg.Connection]:
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        yield connection


def durable_bulk(engine: Engine, model: type[DurableTask], keys: Keys) -> Prepared:
    """Durable.spawn_many, from the calls to the results, looked at."""
    handler = HANDLERS[model]

    def run() -> None:
        with Session(engine) as session, session.begin():
            calls = (handler.call(order_id=i).using(idempotency_key=key) for i, key in enumerate(keys.keys))
            new = sum(spawned.created for spawned in Durable(session).spawn_many(calls))
        assert new == keys.fresh

    return Prepared(keys.renew, run)


def raw(model: type[DurableTask] = SmallTask, *, half_held: bool = False) -> Side:
    def side(bench: Bench, number: int) -> Prepared:
        engine = bench.once(filled(model))
        return raw_bulk(bench, model, Keys(engine, model, number, half_held=half_held))

    return side


def durable(model: type[DurableTask] = SmallTask, *, half_held: bool = False) -> Side:
    def side(bench: Bench, number: int) -> Prepared:
        engine = bench.once(filled(model))
        return durable_bulk(engine, model, Keys(engine, model, number, half_held=half_held))

    return side


WORKLOADS = [
    alternating(
        4, "spawn_many, fresh keys", "psycopg, unnest by 1000", 0.60,
        (raw(), durable()), operations=10_000, block=None,
    ),
    alternating(
        4, "spawn_many, half of the keys held", "psycopg, unnest by 1000, no holders", 0.50,
        (raw(half_held=True), durable(half_held=True)), operations=10_000, block=None,
    ),
]  # fmt: skip
