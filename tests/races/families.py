"""Families of tasks, made in bulk, and what is true of them when everybody is done."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from sa_durable import Cancelled
from sa_durable.ids import uuid7
from sa_durable.values import Claim
from tests.services.waiting import events_of, rows, tick
from tests.shop import BillingTask, MailTask

# How often two transactions race. A race takes 17 ms of a core; 1000 of each took 30 to 230 s where eight others used
# the two cores. 100 are for every day, and `SA_DURABLE_RACES=1000 pytest tests/races` for who changed a lock.
RACES = int(os.environ.get("SA_DURABLE_RACES", "100"))


def transaction(engine: Engine, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with Session(engine) as session, session.begin():
        return act(session, *args, **kwargs)


def attempt(engine: Engine, act: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """In a transaction of its own: "done", or "cancelled" if the claim was. Every other error is one."""
    try:
        transaction(engine, act, *args, **kwargs)
    except Cancelled:
        return "cancelled"
    return "done"


def running(engine: Engine, model: Any, number: int, parents: list[Claim] | None = None) -> list[Claim]:
    """Tasks that are claimed; as the children of `parents`, if given, in their order."""
    ids = [(uuid7(), uuid7()) for _ in range(number)]
    born: list[dict[str, Any]] = [{} for _ in ids]
    if parents:
        born = [{"parent_queue": p.queue, "parent_id": p.task_id} for p in parents]
    name = "charge" if model is BillingTask else "send"
    claimed = {
        "name": name,
        "params": {},
        "state": "running",
        "token": 1,
        "claimed_by": "a worker",
        "max_attempts": 1,
        "started_at": func.now(),
        "first_started_at": func.now(),
        "lease_expires_at": func.now() + timedelta(hours=1),
    }
    made = [{"id": i, "run_id": run_id, **more} for (i, run_id), more in zip(ids, born, strict=True)]
    with engine.begin() as connection:
        connection.execute(insert(model.__table__).values(claimed), made)
    return [
        Claim(model.__queue__, i, run_id, name, {}, None, 1, 1, None, token=1, resumed=False)
        for i, run_id in ids
    ]


def families(engine: Engine, number: int) -> list[tuple[Claim, Claim]]:
    """Parents of one queue, each with a child in the other; all are running."""
    parents = running(engine, MailTask, number)
    return list(zip(parents, running(engine, BillingTask, number, parents), strict=True))


def put_to_sleep(engine: Engine, claims: list[Claim], awaited: dict[UUID, list[tuple[str, str]]]) -> None:
    """Claims of the mail queue, as if each had gone to sleep for events: their names and queues."""
    waits = [
        {"task_id": task_id, "step": f"$await:{name}", "event_name": name, "event_queue": queue}
        for task_id, names in awaited.items()
        for name, queue in names
    ]
    asleep = {
        "state": "sleeping",
        "token": 2,
        "available_at": None,
        "claimed_by": None,
        "lease_expires_at": None,
    }
    tasks = MailTask.__table__
    with engine.begin() as connection:
        connection.execute(insert(MailTask.Wait.__table__), waits)
        ids = [claim.task_id for claim in claims]
        connection.execute(tasks.update().where(tasks.c.id.in_(ids)).values(asleep))


def states(engine: Engine, model: Any) -> dict[UUID, str]:
    with Session(engine) as session:
        return {task_id: state for task_id, state in session.execute(select(model.id, model.state))}  # noqa: C416 - rows


def nothing_is_left(engine: Engine) -> None:
    """After some ticks there is nothing to settle, nobody to wake, and no wait."""
    for _ in range(10 + RACES):  # each does a bounded amount of work
        if not tick(engine) and not _left(engine):
            break
    assert _left(engine) == []


def _left(engine: Engine) -> list[Any]:
    left = []
    for model in (MailTask, BillingTask):
        left += rows(engine, model)
        left += [row for row in events_of(engine, model) if not row[2]]
    return left


def history_agrees(engine: Engine, model: Any) -> None:
    """Who was cancelled or failed while it ran has one run in the history that says so, others none."""
    with Session(engine) as session:
        ended = session.execute(select(model.Run.task_id, model.Run.state)).all()
    unsuccessful = {
        i: state for i, state in states(engine, model).items() if state in ("cancelled", "failed")
    }
    assert Counter(tuple(row) for row in ended) == Counter(unsuccessful.items())
