"""What spawns came to, made visible: a counter, a log line for each duplicate, and hooks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from uuid import UUID

logger = logging.getLogger("sa_durable")


class SpawnOutcome(StrEnum):
    """What became of a spawn."""

    CREATED = "created"
    RETURNED = "returned"  # the existing task
    UPDATED = "updated"  # the existing task, with new params and schedule
    REPLACED = "replaced"  # a new task; the holder was cancelled
    RAISED = "raised"  # DuplicateTask
    CONFLICT = "conflict"  # IdempotencyConflict


@dataclass(frozen=True, slots=True)
class Spawned:
    """One spawn, as hooks see it. It is not committed yet: the caller's transaction decides."""

    queue: str
    task: str  # the name
    outcome: SpawnOutcome
    task_id: UUID  # the new task's, or the holder's
    params_match: bool


Hook = Callable[[Spawned], object]
_hooks: list[Hook] = []
_counts: Counter[tuple[str, str, str]] = Counter()
_lock = Lock()


def on_spawn(hook: Hook) -> Hook:
    """Have `hook` called after every spawn of this process, in the spawning thread. Usable as a decorator.

    An exception that it raises is logged and goes no further.

    >>> @on_spawn
    ... def count(spawned: Spawned) -> None: ...
    >>> remove_hook(count)
    """
    _hooks.append(hook)
    return hook


def remove_hook(hook: Hook) -> None:
    """Undo `on_spawn`."""
    _hooks.remove(hook)


def spawn_counts() -> Mapping[tuple[str, str, str], int]:
    """How many spawns of this process had which outcome, by (queue, task name, outcome), rolled-back ones included."""
    with _lock:
        return dict(_counts)


def record_created(tasks: Iterable[tuple[str, str, UUID]]) -> None:
    """As `record`, for the new tasks (queue, name, id) of a batch."""
    new = list(tasks)
    with _lock:
        _counts.update((queue, name, SpawnOutcome.CREATED.value) for queue, name, _ in new)
    if _hooks:
        for queue, name, task_id in new:
            _call_hooks(Spawned(queue, name, SpawnOutcome.CREATED, task_id, params_match=True))


def record(queue: str, task: str, outcome: SpawnOutcome, task_id: UUID, *, params_match: bool = True) -> None:
    """Count a spawn, log a duplicate (without key and params: they may be private) and call the hooks."""
    with _lock:
        _counts[queue, task, outcome.value] += 1
    if outcome is not SpawnOutcome.CREATED:
        logger.info("duplicate spawn of %s.%s %s: task %s holds the key", queue, task, outcome.value, task_id)
    if _hooks:
        _call_hooks(Spawned(queue, task, outcome, task_id, params_match))


def _call_hooks(spawned: Spawned) -> None:
    for hook in tuple(_hooks):
        try:
            hook(spawned)
        except Exception:
            logger.exception("spawn hook %r failed", hook)
