"""How the tables differ from the model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.consistency import Tables
from tests.shop import BillingTask
from tests.stateful.model import Model
from tests.stateful.tasks import Task

START = datetime(2031, 1, 1, tzinfo=UTC)


def differences(engine: Engine, model: Model) -> list[str]:
    with Session(engine) as session:
        tables = Tables(session, BillingTask)
    seen = {task_id: _seen(tables, row) for task_id, row in tables.tasks.items()}
    wanted = {task_id: _wanted(task) for task_id, task in model.tasks.items()}
    found = [f"tasks {seen.keys() ^ wanted.keys()}"] if seen.keys() != wanted.keys() else []
    for task_id in seen.keys() & wanted.keys():
        for name, value in wanted[task_id].items():
            if seen[task_id][name] != value:
                found.append(f"{task_id}: {name} is {seen[task_id][name]!r}, and the model says {value!r}")
    events = sorted((e.name, str(e.payload), e.settled_at is not None, e.dropped) for e in tables.events)
    expected = sorted((e.name, str(e.payload), e.settled, e.dropped) for e in model.events)
    return found if events == expected else [*found, f"events are {events}, and the model says {expected}"]


def _wanted(task: Task) -> dict[str, Any]:
    names = [
        "state",
        "attempt",
        "max_attempts",
        "token",
        "priority",
        "parent",
        "awaited",
        "result",
        "name",
        "params",
    ]
    return {
        **{name: getattr(task, name) for name in names},
        "key": (task.key, task.hold, task.expires),
        "times": (task.available, task.lease, task.finished, task.cancel_at),
        "started": (task.first_started, task.started),
        "saved": task.saved,
        "waits": {key: (wait.timeout, wait.settled) for key, wait in task.waits.items()},
        "runs": sorted(task.runs),
    }


def _seen(tables: Tables, row: Any) -> dict[str, Any]:
    times = (row.available_at, row.lease_expires_at, row.finished_at, row.cancel_at)
    return {
        **{name: getattr(row, name) for name in ("state", "attempt", "max_attempts", "token", "priority")},
        "parent": row.parent_id,
        "awaited": row.awaited,
        "result": row.result,
        "name": row.name,
        "params": row.params["order_id"],
        "key": (row.idempotency_key, row.key_hold, _seconds(row.key_expires_at)),
        "times": tuple(_seconds(time) for time in times),
        "started": (row.first_started_at is not None, row.started_at is not None),
        "saved": {c.name: _saved(c.name, c.value) for c in tables.checkpoints if c.task_id == row.id},
        "waits": {
            (wait.step, wait.event_name): (_seconds(wait.timeout_at), wait.settled)
            for wait in tables.waits[row.id]
        },
        "runs": sorted((run.attempt, run.state) for run in tables.runs[row.id]),
    }


def _saved(name: str, value: Any) -> Any:
    match name.partition(":")[0], value:
        case "$sleep", str():
            return _seconds(datetime.fromisoformat(value))
        case "$spawn", [child]:
            return child["task_id"]
        case "$join", list():
            return [ended["state"] for ended in value]
    return value


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else (time - START).total_seconds()
