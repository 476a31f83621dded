"""Spawning one by one, and duplicates: against the bare statements that they can't do without."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from uuid import uuid4

from sqlalchemy import Engine, bindparam, select, text
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask
from sa_durable.ids import uuid7
from sa_durable.models.predicates import HELD
from tests.bench.figures import ratio_at_least
from tests.bench.models import HANDLERS, BigTask, SmallTask, filled
from tests.bench.workload import Bench, Side, Workload, pair

RETRY = {"kind": "exponential", "base_seconds": 5.0, "factor": 2.0, "cap_seconds": 300.0, "jitter": 0.2}
_numbers = count(1)
_run = uuid4().hex[:8]  # keys of this run are nobody else's


def fresh_key() -> str:
    return f"bench:{_run}:{next(_numbers)}"


def row_of(key: str, number: int) -> dict[str, object]:
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


def bare_insert(model: type[DurableTask]):
    table = model.__table__
    return (
        pg_insert(table)
        .on_conflict_do_nothing(index_elements=[table.c.idempotency_key], index_where=text(HELD))
        .returning(table.c.id, table.c.state)
    )


def core_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """Limit: bare SQLAlchemy Core, a transaction for each row."""
    statement = bare_insert(model)

    def run() -> None:
        for i in range(number):
            with engine.begin() as connection:
                assert connection.execute(statement, row_of(fresh_key(), i)).first() is not None

    return run


def session_spawn(engine: Engine, model: type[DurableTask], number: int) -> Callable[[], object]:
    """The same bare statement, in a Session and a transaction for each."""
    statement = bare_insert(model)

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                assert session.execute(statement, row_of(fresh_key(), i)).first() is not None

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
    statement, found = bare_insert(model), bare_select(model)

    def run() -> None:
        for i in range(number):
            with engine.begin() as connection:
                assert connection.execute(statement, row_of(key, i)).first() is None
                assert connection.execute(found, {"key": key}).first() is not None

    return run


def session_duplicate(
    engine: Engine, model: type[DurableTask], number: int, key: str
) -> Callable[[], object]:
    """The same bare statements, in a Session."""
    statement, found = bare_insert(model), bare_select(model)

    def run() -> None:
        for i in range(number):
            with Session(engine) as session, session.begin():
                assert session.execute(statement, row_of(key, i)).first() is None
                assert session.execute(found, {"key": key}).first() is not None

    return run


def bare_select(model: type[DurableTask]):
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


def clean(bench: Bench) -> None:
    """The small queue is empty but for the held key, the big one is as it was filled; no vacuum is due."""
    gone = "idempotency_key LIKE 'bench:%' AND params <> '{\"order_id\": 1}' OR idempotency_key IS NULL"
    with bench.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in ("durable_small_tasks", "durable_big_tasks"):
            connection.execute(text(f"DELETE FROM {table} WHERE {gone}"))
            connection.execute(text(f"VACUUM {table}"))


def on(what: Callable[..., Callable[[], object]], model: type[DurableTask]) -> Side:
    """What runs so many of `what` on the queue of `model`."""
    return lambda bench, number: what(bench.once(filled(model)), model, number)


def on_held(what: Callable[..., Callable[[], object]], model: type[DurableTask]) -> Side:
    """The same with a key that a task of the queue holds."""
    key = _held[model]
    return lambda bench, number: what(bench.engine, model, number, bench.once(key))


def _hold(model: type[DurableTask]) -> Callable[[Bench], str]:
    return lambda bench: hold_key(bench.once(filled(model)), model)


_held = {model: _hold(model) for model in (SmallTask, BigTask)}


def alternating(
    number: int,
    name: str,
    limit: str,
    goal: float | None,
    sides: tuple[Side, Side],
    *,
    operations: int = 1000,
    block: int | None = 20,
) -> Workload:
    """Single operations by twenties. `goal` is a ratio; None: a report."""
    return pair(
        number, name, limit=limit, goal=ratio_at_least(goal) if goal else None, sides=sides, before=clean,
        operations=operations, block=block,
    )  # fmt: skip


# spawn is given a Session, so the goals are of the bare statement in one; on a Connection it is a report.
WORKLOADS = [
    alternating(
        1, "spawn, fresh key, one a commit", "bare Core in a Session", 0.90,
        (on(session_spawn, SmallTask), on(durable_spawn, SmallTask)),
    ),
    alternating(
        1, "spawn beside a Connection", "bare Core on a Connection", None,
        (on(core_spawn, SmallTask), on(durable_spawn, SmallTask)),
    ),
    alternating(
        3, "duplicate spawn", "bare conflict and select in a Session", 0.85,
        (on_held(session_duplicate, SmallTask), on_held(durable_duplicate, SmallTask)),
    ),
    alternating(
        3, "duplicate spawn beside a Connection", "bare conflict and select on a Connection", None,
        (on_held(core_duplicate, SmallTask), on_held(durable_duplicate, SmallTask)),
    ),
]  # fmt: skip
