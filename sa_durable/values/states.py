"""The states of a task, and the operations that lead from one state to another."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class TaskState(StrEnum):
    """The state of a task. A task in a terminal state has ended."""

    PENDING = "pending"
    """Ready to be claimed by a worker."""
    RUNNING = "running"
    """Claimed by a worker."""
    SLEEPING = "sleeping"
    """Not to be claimed before a time, an event or the end of another task."""
    COMPLETED = "completed"
    """Terminal: the handler returned."""
    FAILED = "failed"
    """Terminal: the last attempt failed."""
    CANCELLED = "cancelled"
    """Terminal: cancelled by a caller, with its parent, or past its deadline."""

    @property
    def terminal(self) -> bool:
        """Whether the task has ended."""
        return self in TERMINAL


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
"""The states of tasks that have ended."""
ACTIVE = frozenset(TaskState) - TERMINAL
"""The states of tasks that have not ended."""


class Operation(StrEnum):
    """What can happen to a task. Nothing else changes its state."""

    SPAWN = "spawn"
    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    SLEEP = "sleep"
    WAKE = "wake"
    RELEASE = "release"
    SWEEP = "sweep"
    CANCEL = "cancel"
    RETRY = "retry"


_S = TaskState
TRANSITIONS: Mapping[tuple[TaskState | None, Operation], frozenset[TaskState]] = {
    (None, Operation.SPAWN): frozenset({_S.PENDING, _S.SLEEPING}),
    (_S.PENDING, Operation.SPAWN): frozenset(
        {_S.PENDING, _S.SLEEPING}
    ),  # on_duplicate="update": a new schedule
    (_S.SLEEPING, Operation.SPAWN): frozenset({_S.PENDING, _S.SLEEPING}),
    (_S.PENDING, Operation.CLAIM): frozenset({_S.RUNNING}),
    (_S.RUNNING, Operation.COMPLETE): frozenset({_S.COMPLETED}),
    # Cancelled: its next attempt would start after its `max_duration`.
    (_S.RUNNING, Operation.FAIL): frozenset({_S.PENDING, _S.SLEEPING, _S.FAILED, _S.CANCELLED}),
    (_S.RUNNING, Operation.SLEEP): frozenset({_S.SLEEPING}),
    (_S.SLEEPING, Operation.WAKE): frozenset({_S.PENDING}),
    # A worker shuts down. The attempt isn't counted.
    (_S.RUNNING, Operation.RELEASE): frozenset({_S.PENDING}),
    # The lease expired, or the deadline to start or to end has passed.
    (_S.RUNNING, Operation.SWEEP): frozenset({_S.PENDING, _S.FAILED, _S.CANCELLED}),
    (_S.PENDING, Operation.SWEEP): frozenset({_S.CANCELLED}),
    (_S.SLEEPING, Operation.SWEEP): frozenset({_S.CANCELLED}),
    (_S.PENDING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.RUNNING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.SLEEPING, Operation.CANCEL): frozenset({_S.CANCELLED}),
    (_S.FAILED, Operation.RETRY): frozenset({_S.PENDING}),
    (_S.CANCELLED, Operation.RETRY): frozenset({_S.PENDING}),
}
"""The states that an operation can lead to, by the state before it (None: no task yet).

The state diagram of the documentation is made from this table. A test records the transitions that the
database sees and compares them with it.
"""
