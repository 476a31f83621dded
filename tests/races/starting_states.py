"""Rows that two transactions want at once: a family, in each of the states that a task can be in.

`root`, of the mail queue, runs. The `twins`, of the billing queue, are its children; they have keys, and the state that
the scene is called after. The first one has a child, who runs. Two sleepers of the mail queue wait for
the twins' ends, each in an order of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, literal, select

from sa_durable.ids import uuid7
from sa_durable.values import Claim
from tests.shop import Base, BillingTask, MailTask

KEYS = ("k2", "k1")  # against the order of ids
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = func.statement_timestamp()


@dataclass(frozen=True)
class Scene:
    """Claims, which may have been lost by now: what the workers believe to have."""

    engine: Engine
    root: Claim
    twins: list[Claim]
    grandchild: Claim


def _running(**more: Any) -> dict[str, Any]:
    lease = {"claimed_by": "a worker", "lease_expires_at": NOW + HOUR}
    return {"state": "running", "token": 1, **lease, "started_at": NOW, "first_started_at": NOW, **more}


def _given_back(**more: Any) -> dict[str, Any]:
    return {"token": 2, "first_started_at": NOW, "available_at": NOW, **more}


def over(state: str, **more: Any) -> dict[str, Any]:
    ended = {"lease_expires_at": None, "finished_at": NOW - DAY, "available_at": None}
    return _running(state=state, started_at=NOW - DAY, first_started_at=NOW - DAY, **ended, **more)


_ERROR = {"type": "ValueError", "message": "no"}

# What the twins are, by the scene's name. In all but those of what is over, everything else of the family is alive.
TWINS: dict[str, dict[str, Any]] = {
    "pending": _given_back(state="pending"),
    "new": {"state": "pending", "available_at": NOW, "key_hold": "queued"},
    "running": _running(),
    "expired": _running(lease_expires_at=NOW - HOUR),
    "expired for good": _running(lease_expires_at=NOW - HOUR, max_attempts=1),
    "overdue": _running(cancel_at=NOW - HOUR),
    "due": _given_back(state="sleeping"),
    "waiting": _given_back(state="sleeping", available_at=None),
    "awake": _given_back(state="sleeping", available_at=None),
    "failed": over("failed", token=2, error=_ERROR),
    "cancelled": over("cancelled", token=2),
    "completed": over("completed", result="done", key_hold="forever", key_expires_at=NOW - HOUR),
}
OVER = ("failed", "cancelled", "completed")


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(_EMPTY)


# At once: a meeting of two is over in some milliseconds, and each is on empty tables.
_TABLES = {f"t{number}": table for number, table in enumerate(Base.metadata.tables.values())}
_EMPTY = select(literal(1)).add_cte(*(delete(table).cte(name) for name, table in _TABLES.items()))


def scene(engine: Engine, name: str) -> Scene:
    """The rows of a scene, in tables that were empty."""
    ended = name in OVER
    family = over("completed", result=None) if ended else _running()
    with engine.begin() as connection:
        [root] = tasks(connection, MailTask, [family])
        born = {"parent_queue": "mail", "parent_id": root.task_id, "awaited": not ended}
        twins = [{"key_hold": "active", **TWINS[name], "idempotency_key": key, **born} for key in KEYS]
        claims = tasks(connection, BillingTask, twins)
        child = {**family, "parent_queue": "billing", "parent_id": claims[0].task_id}
        made = Scene(engine, root, claims, *tasks(connection, MailTask, [child]))
        if name in ("failed", "cancelled"):
            _end(connection, made, name)
        if name in ("waiting", "awake"):
            wait(
                connection,
                BillingTask,
                [(claim, "e", "billing") for claim in claims],
                settled=name == "awake",
            )
        if not ended:
            _add_sleepers(connection, made)
        payload = literal(1, BillingTask.Event.__table__.c.payload.type)
        settled = {"e": NOW - DAY if name == "awake" else None, "long ago": NOW - DAY}
        events = [{"name": e, "payload": payload, "settled_at": at} for e, at in settled.items()]
        connection.execute(insert(BillingTask.Event.__table__).values(events))
    return made


def tasks(connection: Connection, model: Any, rows: list[dict[str, Any]]) -> list[Claim]:
    """Tasks of `rows`, which have the same columns."""
    name = "charge" if model is BillingTask else "send"
    params = {"order_id": 1} if model is BillingTask else {"to": "ada"}
    claims = [
        Claim(
            model.__queue__,
            uuid7(),
            uuid7(),
            name,
            params,
            None,
            attempt=1,
            max_attempts=row.get("max_attempts", 3),
            retry=None,
            token=1,
            resumed=False,
        )
        for row in rows
    ]
    made = [
        {"id": c.task_id, "run_id": c.run_id, "name": name, "params": params, "max_attempts": 3, **row}
        for c, row in zip(claims, rows, strict=True)
    ]
    connection.execute(insert(model.__table__).values(made))
    return claims


def _end(connection: Connection, made: Scene, state: str) -> None:
    """The history of the twins."""
    how = {"attempt": 1, "state": state, "worker": "a worker"}
    runs = [{"id": twin.run_id, "task_id": twin.task_id, **how} for twin in made.twins]
    connection.execute(insert(BillingTask.Run.__table__), runs)


def wait(
    connection: Connection, model: Any, waits: list[tuple[Claim, str, str]], *, settled: bool = False
) -> None:
    """Waits of claims for events: their names and queues."""
    rows = [
        {
            "task_id": claim.task_id,
            "step": "$await",
            "event_name": event,
            "event_queue": queue,
            "settled": settled,
        }
        for claim, event, queue in waits
    ]
    connection.execute(insert(model.Wait.__table__), rows)


def _add_sleepers(connection: Connection, made: Scene) -> None:
    asleep = _given_back(state="sleeping", available_at=None)
    first, second = tasks(connection, MailTask, [asleep, asleep])
    ends = [f"$task:{twin.task_id}" for twin in made.twins]
    wait(
        connection,
        MailTask,
        [(first, end, "billing") for end in ends] + [(second, end, "billing") for end in ends[::-1]],
    )
