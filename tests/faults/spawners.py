"""Processes that spawn the same keys at the same time, and remember what they were answered."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.orm import Session

from sa_durable import Durable, RetryTransaction
from sa_durable.runtime.connections.engines import engine_for
from tests.faults import app, breakages
from tests.faults.worker_processes import end_with_parent

AWAY = ("08", "53", "57", "25006")  # no connection, no room, stopping, not the primary any more


@dataclass(frozen=True)
class Order:
    """What a spawner is told: `count` keys at `rate` per second, each until it is answered."""

    url: str
    seed: str
    count: int
    rate: float
    pause: float
    broken: str | None = None


@dataclass
class Answers:
    acks: list[tuple[str, UUID]] = field(default_factory=list)
    tolerated: Counter[str] = field(default_factory=Counter)
    """Errors that a caller must expect while the database is away."""
    unexpected: Counter[str] = field(default_factory=Counter)


def name_of(error: Exception) -> str:
    orig = getattr(error, "orig", None)
    return f"{type(orig or error).__name__} {getattr(orig or error, 'sqlstate', None) or ''}".strip()


def is_away(error: Exception) -> bool:
    if isinstance(error, RetryTransaction):
        return True
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    lost = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return sqlstate.startswith(AWAY) or (lost and not sqlstate)


def spawn(engine: Engine, number: int, pause: float) -> tuple[str, UUID]:
    key = f"key {number}"
    with Session(engine) as session:
        spawned = Durable(session).spawn(app.call(number, pause), idempotency_key=key, hold="forever")
        session.commit()
    return key, spawned.task_id


def spawn_all(order: Order, answers: Connection) -> None:
    end_with_parent()
    breakages.apply(order.broken)
    rng = random.Random(order.seed)
    engine = engine_for(order.url)
    given, numbers = Answers(), list(range(order.count))
    for at in range(0, order.count, 10):  # near each other, but not in one order
        part = numbers[at : at + 10]
        rng.shuffle(part)
        numbers[at : at + 10] = part
    began = time.monotonic()
    for done, number in enumerate(numbers):
        time.sleep(max(0.0, began + done / order.rate - time.monotonic()))
        while True:
            try:
                given.acks.append(spawn(engine, number, order.pause))
                break
            except Exception as error:
                if not is_away(error):
                    given.unexpected[name_of(error)] += 1
                    break
                given.tolerated[name_of(error)] += 1
                time.sleep(0.05)
    answers.send(given)
