"""What is true of a queue's five tables whatever has happened: for all tests in which much can happen.

Written against the design's words and the columns, and not with the package's predicates: a statement that breaks one of
those must not hide it from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, select
from sqlalchemy.orm import Session

OVER = ("completed", "failed", "cancelled")
READY = ("pending", "sleeping")
ENDED = "$task:"


def complaints(engine: Engine | Connection, *models: Any, orphans: Iterable[UUID] = ()) -> list[str]:
    """What is wrong in these queues, which are all of their Base; nothing, if all is well.

    `orphans` are children that somebody has retried although their parent has failed or was cancelled.
    """
    with Session(engine) as session:
        queues = {model.__queue__: Tables(session, model) for model in models}
    found: list[str] = []
    for queue in queues.values():
        found += [f"{queue.name} {task.id} ({task.state}): {what}" for task, what in _of_tasks(queue)]
        found += [f"{queue.name}: {what}" for what in (*_of_keys(queue), *_of_events(queue))]
        found += [f"{queue.name}: {what}" for what in _of_waits(queue, queues)]
        found += [f"{queue.name}: {what}" for what in _of_children(queue, queues, set(orphans))]
    return found


class Tables:
    """The rows of a queue."""

    def __init__(self, session: Session, model: Any) -> None:
        table = model.__table__
        has_result = table.c.result.is_not(None).label("has_result")  # JSON's null is one
        self.name = model.__queue__
        self.tasks = {row.id: row for row in session.execute(select(table, has_result))}
        self.runs: dict[UUID, list[Any]] = defaultdict(list)
        for run in session.execute(select(model.Run.__table__)):
            self.runs[run.task_id].append(run)
        self.checkpoints = session.execute(select(model.Checkpoint.__table__)).all()
        self.events = session.execute(select(model.Event.__table__)).all()
        self.waits: dict[UUID, list[Any]] = defaultdict(list)
        for wait in session.execute(select(model.Wait.__table__)):
            self.waits[wait.task_id].append(wait)


def _of_tasks(queue: Tables) -> Iterator[tuple[Any, str]]:
    for task in queue.tasks.values():
        checks = {
            "finished_at goes with its end": (task.finished_at is not None) == (task.state in OVER),
            "it has a lease while it runs": (task.lease_expires_at is not None) == (task.state == "running"),
            "who runs has started": task.state != "running"
            or None not in (task.claimed_by, task.started_at, task.first_started_at),
            "nobody has it": task.state not in READY or task.claimed_by is None,
            "an attempt has started after the first": task.started_at is None
            or task.first_started_at is not None,
            "it is ready at some time": task.state != "pending" or task.available_at is not None,
            "it sleeps for something": task.state != "sleeping"
            or task.available_at is not None
            or task.id in queue.waits,
            "it has a result if it has completed": task.has_result == (task.state == "completed"),
            "it has an error if it has failed": (task.error is not None) >= (task.state == "failed"),
            "it has an error only without success": task.error is None
            or task.state in ("failed", "cancelled"),
            "its attempts are bounded": task.max_attempts is None or 1 <= task.attempt <= task.max_attempts,
            "a claim raised its token": (task.token > 0) >= (task.first_started_at is not None),
        }
        yield from ((task, rule) for rule, kept in checks.items() if not kept)
        yield from ((task, what) for what in _of_history(task, queue.runs[task.id]))
    for saved in queue.checkpoints:
        if saved.attempt > queue.tasks[saved.task_id].attempt:
            yield queue.tasks[saved.task_id], f"checkpoint {saved.name} is of a later attempt"


def _of_history(task: Any, runs: list[Any]) -> Iterator[str]:
    """Each attempt that ended without a result is in it, once, and nothing else."""
    unsuccessful = task.state in ("failed", "cancelled") and task.started_at is not None
    wanted = list(range(1, task.attempt + unsuccessful))
    if (attempts := sorted(run.attempt for run in runs)) != wanted:
        yield f"attempts {attempts} are in its history, in its attempt {task.attempt}"
    for run in runs:
        if run.attempt < task.attempt and run.id == task.run_id:
            yield f"it still is run {run.id}, which has ended"
    last = [run for run in runs if run.attempt == task.attempt]
    if task.state == "failed" and [run.state for run in last] != ["failed"]:
        yield f"its last run is {last}"


def holds_key(task: Any) -> bool:
    match task.key_hold:
        case None:
            return False
        case "forever":
            return True
        case "succeeded":
            return task.state not in ("failed", "cancelled")
        case "queued":
            return task.state not in OVER and task.first_started_at is None
        case "active":
            return task.state not in OVER
    raise AssertionError(task.key_hold)


def _of_keys(queue: Tables) -> Iterator[str]:
    holders: dict[str, list[UUID]] = defaultdict(list)
    for task in queue.tasks.values():
        if task.key_hold is not None and holds_key(task):
            holders[task.idempotency_key].append(task.id)
    yield from (f"key {key!r} is held by {ids}" for key, ids in holders.items() if len(ids) > 1)


def _of_events(queue: Tables) -> Iterator[str]:
    decided = defaultdict(list)
    for event in queue.events:
        if event.settled_at is not None and not event.dropped:
            decided[event.name].append(event.id)
        if event.dropped and event.settled_at is None:
            yield f"event {event.name!r} was dropped before it was decided about"
    yield from (f"{name!r} is {len(ids)} events" for name, ids in decided.items() if len(ids) > 1)


def _of_waits(queue: Tables, queues: dict[str, Tables]) -> Iterator[str]:
    """Nobody sleeps on for what is there already, unless somebody still has to be told."""
    for task_id, waits in queue.waits.items():
        for wait in waits:
            if queue.tasks[task_id].state == "sleeping" and not wait.settled:
                events = [e for e in queues[wait.event_queue].events if e.name == wait.event_name]
                untold = any(event.settled_at is None for event in events)
                if _is_there(wait.event_name, queues[wait.event_queue], events) and not untold:
                    yield f"{task_id} sleeps on for {wait.event_name!r}, which is there"


def _is_there(name: str, queue: Tables, events: list[Any]) -> bool:
    if name.startswith(ENDED):
        task = queue.tasks.get(UUID(name.removeprefix(ENDED)))
        return task is None or task.state in OVER
    return any(event.settled_at is not None and not event.dropped for event in events)


def _of_children(queue: Tables, queues: dict[str, Tables], orphans: set[UUID]) -> Iterator[str]:
    for task in queue.tasks.values():
        if task.parent_id is None or task.state in OVER or task.id in orphans:
            continue
        parent = queues[task.parent_queue].tasks.get(task.parent_id)
        if parent is not None and parent.state in ("failed", "cancelled"):
            yield f"{task.id} is {task.state}, and its parent {parent.state}"
