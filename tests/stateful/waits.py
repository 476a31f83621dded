"""The model's events and waits: emitting, deciding, waiting and waking."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from tests.stateful.model import Model
from tests.stateful.tasks import Wait

TIMED_OUT = {"timed_out": True}
PREFIX = "$task:"


def settle(model: Model, names: set[str]) -> None:
    for name in names:
        rows = [e for e in model.events if e.name == name and not e.dropped]
        if name.startswith(PREFIX):
            model.events = [e for e in model.events if e.name != name]
            _mark(model, name)
            ended = model.tasks.get(UUID(name.removeprefix(PREFIX)))
            if ended is not None and ended.over:
                ended.waits.clear()
            continue
        decided = [e for e in rows if e.settled]
        for event in rows:
            if not event.settled:
                event.settled, event.dropped = True, bool(decided)
                decided = decided or [event]
                if not event.dropped:
                    _mark(model, name)


def _mark(model: Model, name: str) -> None:
    for task in model.tasks.values():
        for wait in task.waits.values():
            wait.settled = wait.settled or wait.event == name


def unsettled(model: Model) -> set[str]:
    return {event.name for event in model.events if not event.settled}


def wake(model: Model) -> int:
    woken = 0
    for task in model.tasks.values():
        steps = {step for step, _ in task.waits}
        done = [step for step in steps if all(w.settled for (s, _), w in task.waits.items() if s == step)]
        if task.state == "sleeping" and done:
            task.state, task.available = "pending", model.now
            task.waits = {key: wait for key, wait in task.waits.items() if not wait.settled}
            woken += 1
    return woken


def forget_idle(model: Model) -> None:
    for task in model.tasks.values():
        open_steps = {step for (step, _), wait in task.waits.items() if not wait.settled}
        asks_itself = task.over or task.state == "pending"
        task.waits = {
            (step, name): wait
            for (step, name), wait in task.waits.items()
            if not wait.settled or not (asks_itself or step in open_steps)
        }


def find_event(model: Model, name: str) -> Any:
    """What is saved of an event; None: it isn't there. It is decided about now, if it is to be."""
    if name in unsettled(model) and not any(e.settled and e.name == name for e in model.events):
        settle(model, {name})
    found = [e for e in model.events if e.name == name and e.settled and not e.dropped]
    return {"payload": found[0].payload} if found else None


def find_ends(model: Model, task_ids: list[UUID]) -> Any:
    tasks = [model.tasks.get(task_id) for task_id in task_ids]
    for task in tasks:
        if task is not None and not task.over and task.parent is None:
            task.awaited = True
    if any(task is not None and not task.over for task in tasks):
        return None
    return [None if task is None else task.state for task in tasks]


def wait_for(
    model: Model, task_id: UUID, token: int, step: str, names: list[str], found: Any, timeout: int | None
) -> Any:
    """None: it sleeps. Else what its checkpoint says."""
    task = model.check(task_id, token)
    if found is None:
        for name in names:
            until = None if timeout is None else model.now + timeout
            task.waits.setdefault((step, name), Wait(name, until))
        times = [wait.timeout for (s, _), wait in task.waits.items() if s == step]
        if not any(time is not None and time <= model.now for time in times):
            open_ = [w.timeout for w in task.waits.values() if not w.settled and w.timeout is not None]
            model._doze(task, min(open_, default=None))
            return None
        found = TIMED_OUT
    task.waits = {key: wait for key, wait in task.waits.items() if key[0] != step}
    return task.saved.setdefault(step, found)
