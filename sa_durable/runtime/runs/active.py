"""Runs that live in this process: from their claim until their end is stored."""

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
    """A claim that this process holds, and whether it still may act on it.

    Once a signal has ended it, that is final: whatever the handler does with the signal, nothing more is written.
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

    def __init__(self, model: Model, claim: Claim, deadline: float) -> None:
        self.model, self.claim = model, claim
        self.deadline = deadline  # of time.monotonic(): when its lease may be over, less a margin
        self.checkpoints: Mapping[str, Json] = {}
        self.signal: Signal | None = None
        self.started = 0.0
        self.ends_at = inf  # of time.monotonic(): when its `timeout` is over
        self.timeout = timedelta.max
        self.finishing = False  # the handler has ended; its outcome is on its way to the database
        self.task: asyncio.Task[Any] | None = None  # of an async handler
        self.thread: int | None = None  # that runs the handler, or its event loop: the ident

    def check(self) -> None:
        """Raise the signal that ended this run, if one has. The lease is judged by this process's own clock, from
        before the claim or extension was sent: no message has to arrive for that."""
        self.end_if_overdue()
        if self.signal is not None:
            self._raise(self.signal)

    def end_if_overdue(self) -> None:
        """End it if its lease may be over."""
        if self.signal is None and monotonic() > self.deadline:
            self.end(LeaseLost(f"task {self.claim.task_id}: the lease could not be extended in time"))

    @property
    def lease_valid(self) -> bool:
        """Whether `check` would raise nothing."""
        return self.signal is None and monotonic() <= self.deadline

    @property
    def lease_remaining(self) -> float:
        """Seconds until the lease may be over."""
        return max(0.0, self.deadline - monotonic())

    @contextmanager
    def finishing_block(self) -> Iterator[None]:
        """While its row may already say that it sleeps or has ended: a heartbeat must not take it for lost."""
        self.finishing = True
        try:
            yield
        finally:
            self.finishing = False

    def _raise(self, signal: Signal) -> NoReturn:
        raise type(signal)(*signal.args)  # a new one each time: no endless traceback

    def end(self, signal: Signal) -> bool:
        """Nothing more is written for this run; an async handler is cancelled. False: it had ended before."""
        if self.signal is not None:
            return False
        self.signal = signal
        level = logging.INFO if isinstance(signal, Cancelled) else logging.WARNING
        what = type(signal).__name__
        logger.log(level, "%s: attempt %d of %s: %s", what, self.claim.attempt, self.claim.name, signal)
        if (task := self.task) is not None:
            loop = task.get_loop()
            with suppress(RuntimeError):  # the loop is closed: nothing runs on it any more
                loop.call_soon_threadsafe(task.cancel)
        return True

    def runs_as(self, task: asyncio.Task[Any]) -> None:
        self.task = task

    def suspend(self) -> NoReturn:
        """End a run that sleeps, from within its own handler."""
        self._raise(self.mark_asleep())

    def mark_asleep(self) -> Signal:
        """Its row says that it sleeps: that ends the run, before anything else of it can take its claim for lost."""
        if self.signal is None:
            self.signal = Suspend(f"task {self.claim.task_id} sleeps")
        return self.signal


class ActiveRuns:
    """The live runs of a worker, for those who extend leases and for the end of the process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs: defaultdict[Model, dict[UUID, ActiveRun]] = defaultdict(dict)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._runs.values()))

    def add(self, runs: Iterable[ActiveRun]) -> None:
        with self._lock:
            for run in runs:
                self._runs[run.model][run.claim.task_id] = run

    def remove(self, runs: Iterable[ActiveRun]) -> None:
        with self._lock:
            for run in runs:
                known = self._runs[run.model]
                if known.get(run.claim.task_id) is run:  # this worker may have claimed the task again
                    del known[run.claim.task_id]

    def end_overdue(self) -> None:
        """End those whose lease may be over."""
        for run in self.all():
            if not run.finishing:
                run.end_if_overdue()

    def by_queue(self) -> dict[Model, list[ActiveRun]]:
        with self._lock:
            return {model: list(runs.values()) for model, runs in self._runs.items() if runs}

    def all(self) -> list[ActiveRun]:
        return [run for runs in self.by_queue().values() for run in runs]
