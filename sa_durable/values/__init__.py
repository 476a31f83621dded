"""The words of sa_durable as values: enums, frozen dataclasses and the table of state transitions."""

from .json import Json
from .outcomes import Claim, CleanedUp, SpawnResult, TaskError, TaskResult, TaskRun
from .spawning import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_RETRY,
    Cancellation,
    Exponential,
    Fixed,
    HandlerKeywords,
    Hold,
    NoRetry,
    OnDuplicate,
    RetryPolicy,
    SpawnKeywords,
    SpawnOptions,
)
from .states import ACTIVE, TERMINAL, TRANSITIONS, Operation, TaskState

__all__ = [
    "ACTIVE",
    "DEFAULT_MAX_ATTEMPTS",
    "DEFAULT_RETRY",
    "TERMINAL",
    "TRANSITIONS",
    "Cancellation",
    "Claim",
    "CleanedUp",
    "Exponential",
    "Fixed",
    "HandlerKeywords",
    "Hold",
    "Json",
    "NoRetry",
    "OnDuplicate",
    "Operation",
    "RetryPolicy",
    "SpawnKeywords",
    "SpawnOptions",
    "SpawnResult",
    "TaskError",
    "TaskResult",
    "TaskRun",
    "TaskState",
]
