"""The column values of a task in each state, as sa_durable's own statements leave them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement

from ..models import DurableTask
from ..policy import retry_to_json
from ..statements import clock
from ..values import DEFAULT_MAX_ATTEMPTS, DEFAULT_RETRY, TERMINAL, TaskError, TaskState

WORKER = "worker-1"
ERROR = TaskError("builtins.RuntimeError", "made up").to_json()
_S = TaskState


def ago(**duration: float) -> ColumnElement[Any]:
    """Return the database's time minus a duration."""
    return clock.now() - timedelta(**duration)


def task_values(state: TaskState, attempt: int, *, started: bool) -> dict[str, Any]:
    """Return the columns of a task in its n-th attempt.

    Attempts started a minute after each other, the last one a minute ago.

    Args:
        state: The task's state.
        attempt: The number of the attempt, from 1.
        started: Whether a worker has claimed this attempt already. Earlier attempts were always claimed.
    """
    started = started or state in (_S.RUNNING, _S.COMPLETED, _S.FAILED)
    ever_started = started or attempt > 1
    created_at = ago(minutes=attempt + 1) if ever_started else clock.now()
    values: dict[str, Any] = {
        "params": {},
        "retry": retry_to_json(DEFAULT_RETRY),
        "max_attempts": max(DEFAULT_MAX_ATTEMPTS, attempt),
        "created_at": created_at,
        "available_at": created_at,
        "token": _token(state, attempt, started=started),
    }
    if ever_started:
        values["first_started_at"] = ago(minutes=attempt)
    if started and state is not _S.PENDING:
        values["started_at"] = ago(minutes=1)
    if started and state not in (_S.PENDING, _S.SLEEPING):
        values["claimed_by"] = WORKER
    if state in TERMINAL:
        values["finished_at"] = clock.now()
    match state:
        case TaskState.RUNNING:
            values["lease_expires_at"] = ago(minutes=-1)
        case TaskState.SLEEPING:
            values["available_at"] = ago(hours=-1)
        case TaskState.COMPLETED:
            values["result"] = None
        case TaskState.FAILED:
            values["error"] = ERROR
        case TaskState.CANCELLED:
            values["available_at"] = None
    return values


def _token(state: TaskState, attempt: int, *, started: bool) -> int:
    """Return the token. Every claim increments it, and so does every end of a run except completion."""
    claimed = 2 * (attempt - 1) + started
    ended = state is _S.CANCELLED or (started and state in (_S.PENDING, _S.SLEEPING, _S.FAILED))
    return claimed + ended


def run_values(task: DurableTask) -> list[dict[str, Any]]:
    """Return the history of `task`: failed attempts, and the current one if it ended without a result."""
    minute = timedelta(minutes=1)
    first: Any = task.first_started_at
    runs: list[dict[str, Any]] = [
        {
            "attempt": attempt,
            "started_at": first + (attempt - 1) * minute,
            "ended_at": first + attempt * minute,
        }
        for attempt in range(1, task.attempt)
    ]
    if task.state in (_S.FAILED, _S.CANCELLED) and task.started_at is not None:
        last = {
            "id": task.run_id,
            "attempt": task.attempt,
            "state": task.state,
            "worker": task.claimed_by,
            "started_at": task.started_at,
            "ended_at": task.finished_at,
            "error": task.error,
        }
        runs.append(last)
    return runs
