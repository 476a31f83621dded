"""What spawns came to, made visible: a counter and a log line for each duplicate; and hooks, at spawns and around runs."""

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


@dataclass(frozen=True, slots=True)
class Spawning:
    """One spawn that is about to happen, as `before_spawn` hooks see it."""

    queue: str
    task: str  # the name
    headers: dict[str, Json]  # the hook's to change: add, replace, remove


class RunningTask(Protocol):
    """What `around_run` hooks see of a run: the context of its handler, TaskContext or AsyncTaskContext."""

    @property
    def queue(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def task_id(self) -> UUID: ...
    @property
    def run_id(self) -> UUID: ...
    @property
    def attempt(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, Json]: ...


Hook = Callable[[Spawned], object]
SpawnHook = Callable[[Spawning], object]
RunHook = Callable[[RunningTask], AbstractContextManager[Any]]
_hooks: list[Hook] = []
spawn_hooks: list[SpawnHook] = []
run_hooks: list[RunHook] = []
_counts: Counter[tuple[str, str, str]] = Counter()
_lock = Lock()
_held_back: ContextVar[list[Spawned] | None] = ContextVar("held_back", default=None)


def on_spawn(hook: Hook) -> Hook:
    """Have `hook` called after every spawn of this process, in the spawning thread. Usable as a decorator.

    An exception that it raises is logged and goes no further.

    >>> @on_spawn
    ... def count(spawned: Spawned) -> None: ...
    >>> remove_hook(count)
    """
    _hooks.append(hook)
    return hook


def before_spawn(hook: SpawnHook) -> SpawnHook:
    """Have `hook` called before every spawn of this process, in the spawning thread, to change the task's headers: every
    way of spawning, task objects (when they are made) and children included; but a task that is retried as a new one has
    the headers that it had. Usable as a decorator.

    An exception that it raises is logged and goes no further; the headers stay as they were, as they do if the hook's
    can't be stored.

    >>> @before_spawn
    ... def trace(spawning: Spawning) -> None:
    ...     spawning.headers["traceparent"] = "00-..."  # opentelemetry.propagate.inject(spawning.headers)
    >>> remove_hook(trace)
    """
    spawn_hooks.append(hook)
    return hook


def around_run(hook: RunHook) -> RunHook:
    """Have every run of this process's workers happen within the context manager that `hook` returns, in the thread, or
    asyncio task, of its handler: to restore a trace or log context from the headers. Usable as a decorator.

    It is entered each time a handler is started, after a sleep too, and left with the exception that ends the run, if
    there is one; Suspend is none to worry about. It can't change how the run ends: an exception that it raises is
    logged and goes no further, and one that it swallows ends the run all the same.

    >>> from contextlib import contextmanager
    >>> @around_run
    ... @contextmanager
    ... def trace(task: RunningTask):
    ...     print(task.headers.get("traceparent"))  # with tracer.start_as_current_span(task.name, extract(task.headers)):
    ...     yield
    >>> remove_hook(trace)
    """
    run_hooks.append(hook)
    return hook


def remove_hook(hook: Callable[..., Any]) -> None:
    """Undo `on_spawn`, `before_spawn` or `around_run`. Raises ValueError for what is no hook."""
    registered: list[list[Any]] = [_hooks, spawn_hooks, run_hooks]
    next((hooks for hooks in registered if hook in hooks), _hooks).remove(hook)


def changed_headers(
    queue: str,
    task: str,
    headers: Mapping[str, Json] | None,
    *,
    check: Callable[[Mapping[str, Json]], object],
) -> Mapping[str, Json] | None:
    """What the hooks make of the headers of a spawn; `check` raises for what can't be stored."""
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
    """How many spawns of this process had which outcome, by (queue, task name, outcome), rolled-back ones included."""
    with _lock:
        return dict(_counts)


def record_created(queue: str, names: Sequence[str], ids: Iterable[UUID]) -> None:
    """As `record`, for the new tasks of a batch. Their ids are looked at only where hooks want them."""
    with _lock:
        for name, number in Counter(names).items():
            _counts[queue, name, SpawnOutcome.CREATED.value] += number
    if _hooks:
        for name, task_id in zip(names, ids, strict=True):
            _call_hooks(Spawned(queue, name, SpawnOutcome.CREATED, task_id, params_match=True))


def record(queue: str, task: str, outcome: SpawnOutcome, task_id: UUID, *, params_match: bool = True) -> None:
    """Count a spawn, log a duplicate (without key and params: they may be private) and call the hooks."""
    if (held_back := _held_back.get()) is not None:
        held_back.append(Spawned(queue, task, outcome, task_id, params_match))
        return
    with _lock:
        _counts[queue, task, outcome.value] += 1
    if outcome is not SpawnOutcome.CREATED:
        logger.info("duplicate spawn of %s.%s %s: task %s holds the key", queue, task, outcome.value, task_id)
    if _hooks:
        _call_hooks(Spawned(queue, task, outcome, task_id, params_match))


@contextmanager
def defer_recording(*, unless: tuple[type[Exception], ...]) -> Iterator[None]:
    """What is recorded in here counts from the end of it, `unless` that is one of these exceptions."""
    outcomes: list[Spawned] = []
    before = _held_back.set(outcomes)
    try:
        yield
    except unless:
        outcomes.clear()
        raise
    finally:
        _held_back.reset(before)
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
