"""Runs that this process has claimed and whose outcome is not stored yet."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from math import inf
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from ...errors import Cancelled, LeaseLost, Signal, Suspend
from ...values import Claim, Json

if TYPE_CHECKING:
    from ...models import DurableTask

Model = type["DurableTask"]
logger = logging.getLogger("sa_durable.worker")


class ActiveRun:
    """A claim of this process, and whether its handler may still write.

    The first signal that ends the run is final. Whatever the handler does with the signal, nothing more is
    written.

    Thread safety: no lock. Each field is assigned in one step, and readers accept a value that is just being
    replaced.
    """

    __slots__ = (
        "checkpoints",
        "claim",
        "deadline",
        "ends_at",
        "finishing",
        "model",
        "signal",
        "started",
        "task",
        "thread",
        "timeout",
    )

    model: Model
    """The task class of the queue."""
    claim: Claim
    deadline: float
    """`time.monotonic()` at which the run stops writing: its lease may expire soon after (see lease.py)."""
    checkpoints: Mapping[str, Json]
    """The values of the steps that earlier runs of the task have completed, by name."""
    signal: Signal | None
    """The signal that ended the run. None while the handler may write."""
    started: float
    """`time.monotonic()` at which the handler started. Until then: when the run began to wait for a slot."""
    ends_at: float
    """`time.monotonic()` at which the handler's `timeout` expires. inf: it has none."""
    timeout: timedelta
    """The handler's `timeout`."""
    finishing: bool
    """Whether the outcome is being stored. The database may say already that the task has ended or sleeps, so
    a heartbeat that finds the claim gone must not report it as lost.
    """
    task: asyncio.Task[Any] | None
    """The asyncio task of an async handler, while it runs. `end` cancels it."""
    thread: int | None
    """Identifier of the thread that runs the handler, or the handler's event loop."""

    def __init__(self, model: Model, claim: Claim, deadline: float) -> None:
        self.model, self.claim = model, claim
        self.deadline = deadline
        self.checkpoints = {}
        self.signal = None
        self.started = 0.0
        self.ends_at = inf
        self.timeout = timedelta.max
        self.finishing = False
        self.task = None
        self.thread = None

    def check(self) -> None:
        """Raise the signal that ended the run, if there is one.

        Also ends the run if its lease may have expired. This process's own clock decides that, counted from
        before the claim or its last extension was sent, so no message has to arrive.
        """
        self.end_if_overdue()
        if self.signal is not None:
            self._raise(self.signal)

    def end_if_overdue(self) -> None:
        """End the run if its lease may have expired."""
        if self.signal is None and monotonic() > self.deadline:
            self.end(LeaseLost(f"task {self.claim.task_id}: the lease could not be extended in time"))

    @property
    def lease_remaining(self) -> float:
        """Seconds until the run stops writing."""
        return max(0.0, self.deadline - monotonic())

    @contextmanager
    def finishing_block(self) -> Iterator[None]:
        """Set `finishing` during the block."""
        self.finishing = True
        try:
            yield
        finally:
            self.finishing = False

    def end(self, signal: Signal) -> bool:
        """End the run: nothing more is written for it, and an async handler is cancelled.

        Returns:
            Whether this call ended it. False: an earlier signal had.
        """
        if self.signal is not None:
            return False
        self.signal = signal
        level = logging.INFO if isinstance(signal, Cancelled) else logging.WARNING
        logger.log(
            level,
            "run ended: %s, attempt %d (%s: %s); what its handler does from now on is discarded",
            self.claim.name,
            self.claim.attempt,
            type(signal).__name__,
            signal,
        )
        if (task := self.task) is not None:
            loop = task.get_loop()
            with suppress(RuntimeError):  # the loop is closed, so the handler no longer runs
                loop.call_soon_threadsafe(task.cancel)
        return True

    def suspend(self) -> NoReturn:
        """End a run whose task sleeps, by raising a signal in its handler."""
        self._raise(self.mark_asleep())

    def mark_asleep(self) -> Signal:
        """Return the signal that ends a run whose row says that the task sleeps.

        Sets the signal at once, before a heartbeat can report the claim as lost.
        """
        if self.signal is None:
            self.signal = Suspend(f"task {self.claim.task_id} sleeps")
        return self.signal

    def _raise(self, signal: Signal) -> NoReturn:
        raise type(signal)(*signal.args)  # a new instance each time: its traceback would grow without end


class ActiveRuns:
    """The table of a worker's active runs. The heartbeat, the timeouts and the shutdown read it.

    Thread safety: any thread may call any method.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: defaultdict[Model, dict[UUID, ActiveRun]] = defaultdict(dict)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._runs.values()))

    def add(self, runs: Iterable[ActiveRun]) -> None:
        """Add runs that were claimed just now."""
        with self._lock:
            for run in runs:
                self._runs[run.model][run.claim.task_id] = run

    def remove(self, runs: Iterable[ActiveRun]) -> None:
        """Remove runs whose outcome is stored, or whose claim is lost."""
        with self._lock:
            for run in runs:
                known = self._runs[run.model]
                if known.get(run.claim.task_id) is run:  # this worker may have claimed the task again
                    del known[run.claim.task_id]

    def end_overdue(self) -> None:
        """End the runs whose lease may have expired."""
        for run in self.all():
            if not run.finishing:
                run.end_if_overdue()

    def by_queue(self) -> dict[Model, list[ActiveRun]]:
        """Return the runs of each queue that has any."""
        with self._lock:
            return {model: list(runs.values()) for model, runs in self._runs.items() if runs}

    def all(self) -> list[ActiveRun]:
        """Return all runs."""
        return [run for runs in self.by_queue().values() for run in runs]
