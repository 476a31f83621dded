"""Spawn counters, log lines for duplicates, and hooks at spawns and around runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Any, Protocol
from uuid import UUID

from .values import Json

logger = logging.getLogger("sa_durable")


class SpawnOutcome(StrEnum):
    """The result of a spawn."""

    CREATED = "created"
    """A new task."""
    RETURNED = "returned"
    """The existing task."""
    UPDATED = "updated"
    """The existing task, with new params and schedule."""
    REPLACED = "replaced"
    """A new task; the holder of the key was cancelled."""
    RAISED = "raised"
    """DuplicateTask was raised."""
    CONFLICT = "conflict"
    """IdempotencyConflict was raised."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A spawn, as `on_spawn` hooks see it. It isn't committed yet: the caller's transaction decides."""

    queue: str
    """Name of the queue."""
    task: str
    """Name of the task."""
    outcome: SpawnOutcome
    """The result of the spawn."""
    task_id: UUID
    """Id of the new task, or of the holder of the key."""
    params_match: bool
    """False: the holder of the key has other params."""


@dataclass(frozen=True, slots=True)
class Spawning:
    """A spawn that is about to happen, as `before_spawn` hooks see it."""

    queue: str
    """Name of the queue."""
    task: str
    """Name of the task."""
    headers: dict[str, Json]
    """Headers of the task. The hook can add, replace and remove some."""


class RunningTask(Protocol):
    """A run, as `around_run` hooks see it: the context of its handler, TaskContext or AsyncTaskContext."""

    @property
    def queue(self) -> str:
        """Name of the queue."""

    @property
    def name(self) -> str:
        """Name of the task."""

    @property
    def task_id(self) -> UUID:
        """Id of the task."""

    @property
    def run_id(self) -> UUID:
        """Id of the current run."""

    @property
    def attempt(self) -> int:
        """Number of the current run, from 1."""

    @property
    def headers(self) -> Mapping[str, Json]:
        """Headers of the task."""


Hook = Callable[[Spawned], object]
SpawnHook = Callable[[Spawning], object]
RunHook = Callable[[RunningTask], AbstractContextManager[Any]]
_hooks: list[Hook] = []
spawn_hooks: list[SpawnHook] = []
run_hooks: list[RunHook] = []
_counts: Counter[tuple[str, str, str]] = Counter()
_lock = Lock()
_deferred: ContextVar[list[Spawned] | None] = ContextVar("deferred", default=None)


def on_spawn(hook: Hook) -> Hook:
    """Call `hook` after every spawn of this process, in the spawning thread. Usable as a decorator.

    An exception that the hook raises is logged and doesn't affect the spawn.

    >>> @on_spawn
    ... def count(spawned: Spawned) -> None: ...
    >>> remove_hook(count)
    """
    _hooks.append(hook)
    return hook


def before_spawn(hook: SpawnHook) -> SpawnHook:
    """Call `hook` before every spawn of this process, in the spawning thread. Usable as a decorator.

    The hook can change the task's headers. It is called for every way of spawning, including children, and
    task objects, when they are made. It isn't called for a task that is retried as a new one, which keeps its
    headers.

    An exception that the hook raises is logged and doesn't affect the spawn. The headers then stay as they
    were, and so they do if the hook's headers can't be stored.

    >>> @before_spawn
    ... def trace(spawning: Spawning) -> None:
    ...     spawning.headers["traceparent"] = "00-..."  # opentelemetry.propagate.inject(spawning.headers)
    >>> remove_hook(trace)
    """
    spawn_hooks.append(hook)
    return hook


def around_run(hook: RunHook) -> RunHook:
    """Enter `hook`'s context manager around every run of this process's workers. Usable as a decorator.

    Use it to restore a trace or log context from the task's headers. The context manager is entered in the
    thread, or asyncio task, of the handler, each time the handler starts, also after a sleep. It is left with
    the exception that ends the run, if any; Suspend is not a failure.

    The hook can't change how the run ends: an exception that it raises is logged, and an exception that it
    swallows still ends the run.

    >>> from contextlib import contextmanager
    >>> @around_run
    ... @contextmanager
    ... def trace(task: RunningTask):
    ...     print(task.headers.get("traceparent"))  # extract(task.headers), start_as_current_span
    ...     yield
    >>> remove_hook(trace)
    """
    run_hooks.append(hook)
    return hook


def remove_hook(hook: Callable[..., Any]) -> None:
    """Undo `on_spawn`, `before_spawn` or `around_run`. Raises ValueError if `hook` isn't registered."""
    registered: list[list[Any]] = [_hooks, spawn_hooks, run_hooks]
    next((hooks for hooks in registered if hook in hooks), _hooks).remove(hook)


def changed_headers(
    queue: str,
    task: str,
    headers: Mapping[str, Json] | None,
    *,
    check: Callable[[Mapping[str, Json]], object],
) -> Mapping[str, Json] | None:
    """Return a spawn's headers as the hooks change them. `check` raises for headers that can't be stored."""
    for hook in tuple(spawn_hooks):
        changed = dict(headers or {})
        try:
            hook(Spawning(queue, task, changed))
            check(changed)
        except Exception:
            logger.exception("spawn hook %r failed", hook)
        else:
            headers = changed
    return headers


def spawn_counts() -> Mapping[tuple[str, str, str], int]:
    """Return how many spawns of this process had which outcome, by (queue, task name, outcome).

    Spawns that were rolled back are included.
    """
    with _lock:
        return dict(_counts)


def record_created(queue: str, names: Sequence[str], ids: Iterable[UUID]) -> None:
    """Record the new tasks of a batch, as `record` does.

    Reads `ids` only if there are hooks, because making them takes time.
    """
    with _lock:
        for name, number in Counter(names).items():
            _counts[queue, name, SpawnOutcome.CREATED.value] += number
    if _hooks:
        for name, task_id in zip(names, ids, strict=True):
            _call_hooks(Spawned(queue, name, SpawnOutcome.CREATED, task_id, params_match=True))


def record(queue: str, task: str, outcome: SpawnOutcome, task_id: UUID, *, params_match: bool = True) -> None:
    """Count a spawn, log a duplicate and call the hooks.

    The log line leaves out key and params, which may be private.
    """
    if (deferred := _deferred.get()) is not None:
        deferred.append(Spawned(queue, task, outcome, task_id, params_match))
        return
    with _lock:
        _counts[queue, task, outcome.value] += 1
    if outcome is not SpawnOutcome.CREATED:
        logger.info("duplicate spawn of %s.%s %s: task %s holds the key", queue, task, outcome.value, task_id)
    if _hooks:
        _call_hooks(Spawned(queue, task, outcome, task_id, params_match))


@contextmanager
def defer_recording(*, unless: tuple[type[Exception], ...]) -> Iterator[None]:
    """Record the spawns inside the block at its end, unless it ends with one of the exceptions `unless`."""
    outcomes: list[Spawned] = []
    before = _deferred.set(outcomes)
    try:
        yield
    except unless:
        outcomes.clear()
        raise
    finally:
        _deferred.reset(before)
        for spawned in outcomes:
            record(
                spawned.queue,
                spawned.task,
                spawned.outcome,
                spawned.task_id,
                params_match=spawned.params_match,
            )


def _call_hooks(spawned: Spawned) -> None:
    for hook in tuple(_hooks):
        try:
            hook(spawned)
        except Exception:
            logger.exception("spawn hook %r failed", hook)
