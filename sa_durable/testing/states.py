"""What the columns of a task say in each state, as sa_durable's own statements leave them."""

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
    """The database's time, less a duration."""
    return clock.now() - timedelta(**duration)


def task_values(state: TaskState, attempt: int, *, started: bool) -> dict[str, Any]:
    """The columns of a task in its n-th attempt. `started`: a worker had that attempt already, as it had every one
    before. Attempts began a minute after each other, the last one a minute ago."""
    started = started or state in (_S.RUNNING, _S.COMPLETED, _S.FAILED)
    begun = started or attempt > 1
    created_at = ago(minutes=attempt + 1) if begun else clock.now()
    values: dict[str, Any] = {
        "params": {},
        "retry": retry_to_json(DEFAULT_RETRY),
        "max_attempts": max(DEFAULT_MAX_ATTEMPTS, attempt),
        "created_at": created_at,
        "available_at": created_at,
        "token": _token(state, attempt, started=started),
    }
    if begun:
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
    """Every claim raises it by one, and so does every end of a run but completion."""
    claimed = 2 * (attempt - 1) + started
    in_the_end = state is _S.CANCELLED or (started and state in (_S.PENDING, _S.SLEEPING, _S.FAILED))
    return claimed + in_the_end


def run_values(task: DurableTask) -> list[dict[str, Any]]:
    """The history of `task`: its failed attempts, and the current one if that ended without a result."""
    minute = timedelta(minutes=1)
    begun: Any = task.first_started_at
    runs: list[dict[str, Any]] = [
        {
            "attempt": attempt,
            "started_at": begun + (attempt - 1) * minute,
            "ended_at": begun + attempt * minute,
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
