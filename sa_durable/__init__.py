"""Durable tasks with idempotency keys, inside your own SQLAlchemy models, session and PostgreSQL.

Public submodules, imported on their own:

- `sa_durable.telemetry`: spawn counters, and hooks at spawns and around runs.
- `sa_durable.testing`: pytest fixtures, factories, and a worker that runs until a queue is idle.
- `sa_durable.alembic`: autogenerate plugin and migration operations.
- `sa_durable.embedded`: a private PostgreSQL server for tests and demos.
"""

from .derived_key import once_key
from .errors import (
    Cancelled,
    DeclarationError,
    DuplicateTask,
    DurableError,
    Fail,
    IdempotencyConflict,
    InvalidEvent,
    InvalidKey,
    InvalidOptions,
    InvalidParams,
    InvalidResult,
    InvalidState,
    KeyedObject,
    KeyTaken,
    LeaseLost,
    MissingExtra,
    NoContext,
    RetryTransaction,
    SchemaOutdated,
    Signal,
    StepMisuse,
    Suspend,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    TimedOut,
    UnknownQueue,
)
from .handlers import Call, Handler
from .models import DurableCheckpoint, DurableEvent, DurableQueue, DurableRun, DurableTask, DurableWait
from .runtime import AsyncTaskContext, Step, TaskContext, Worker, current_context, wait_for, wait_for_async
from .services.async_durable import AsyncDurable
from .services.durable import Durable
from .services.verify import Difference, verify
from .values import (
    Cancellation,
    CleanedUp,
    Exponential,
    Fixed,
    Hold,
    NoRetry,
    OnDuplicate,
    SpawnOptions,
    SpawnResult,
    TaskError,
    TaskResult,
    TaskRun,
    TaskState,
)

__version__ = "0.1.0"
__all__ = [
    "AsyncDurable",
    "AsyncTaskContext",
    "Call",
    "Cancellation",
    "Cancelled",
    "CleanedUp",
    "DeclarationError",
    "Difference",
    "DuplicateTask",
    "Durable",
    "DurableCheckpoint",
    "DurableError",
    "DurableEvent",
    "DurableQueue",
    "DurableRun",
    "DurableTask",
    "DurableWait",
    "Exponential",
    "Fail",
    "Fixed",
    "Handler",
    "Hold",
    "IdempotencyConflict",
    "InvalidEvent",
    "InvalidKey",
    "InvalidOptions",
    "InvalidParams",
    "InvalidResult",
    "InvalidState",
    "KeyTaken",
    "KeyedObject",
    "LeaseLost",
    "MissingExtra",
    "NoContext",
    "NoRetry",
    "OnDuplicate",
    "RetryTransaction",
    "SchemaOutdated",
    "Signal",
    "SpawnOptions",
    "SpawnResult",
    "Step",
    "StepMisuse",
    "Suspend",
    "TaskCancelled",
    "TaskContext",
    "TaskError",
    "TaskFailed",
    "TaskNotFound",
    "TaskResult",
    "TaskRun",
    "TaskState",
    "TimedOut",
    "UnknownQueue",
    "Worker",
    "current_context",
    "once_key",
    "verify",
    "wait_for",
    "wait_for_async",
]
