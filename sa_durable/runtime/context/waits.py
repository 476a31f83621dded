"""Waiting and telling: events, children, joins. Blocking functions, as contexts call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from ...codec import Coder
from ...errors import TaskCancelled, TaskFailed, TaskNotFound, TimedOut
from ...handlers import Call
from ...services import checkpoints, child_tasks, events, waits
from ...services.checkpoints import AlreadySaved
from ...services.waits import TIMED_OUT, Arrived, Awaited, Prerequisites, Registered
from ...values import Json, SpawnKeywords, TaskError, TaskState
from ..connections.database import Database
from ..runs.active import ActiveRun
from ..runs.lease import write_while_leased
from ..threads.wakeup import Wakeup
from .steps import UNTYPED, decode

if TYPE_CHECKING:
    from ...models import DurableTask


class Waits:
    """What a run waits for, and what it spawns and emits. Each raises the signal that ends the run."""

    def __init__(self, database: Database, *, asleep: Wakeup, ready: Wakeup) -> None:
        """`asleep` is hinted when a run has gone to sleep or an event was emitted, `ready` when there is a new task."""
        self._database, self._asleep, self._ready = database, asleep, ready

    def wait(self, run: ActiveRun, step: str, what: Awaited, timeout: timedelta | None) -> Json:
        """What was waited for, as its checkpoint says; None: the run sleeps."""
        while True:
            found = self.register(run, step, what, timeout) or self._fall_asleep(run, step, what)
            match found:
                case Arrived(value):
                    return value
                case Prerequisites():
                    self._run_prerequisites(run, found)
                case None:
                    self._asleep.set()
                    return None

    def register(self, run: ActiveRun, step: str, what: Awaited, timeout: timedelta | None) -> Arrived | None:
        """What is waited for, if it is there. None: its end wakes the run, once that sleeps."""
        while True:
            match write_while_leased(run, lambda: self._check_and_register(run, step, what, timeout)):
                case Prerequisites() as missing:
                    self._run_prerequisites(run, missing)
                case Registered():
                    return None
                case Arrived() as arrived:
                    return arrived

    def _run_prerequisites(self, run: ActiveRun, missing: Prerequisites) -> None:
        for act in missing.first:
            write_while_leased(run, partial(self._act, act))

    def _fall_asleep(self, run: ActiveRun, step: str, what: Awaited) -> Arrived | Prerequisites | None:
        with run.finishing_block():
            found = write_while_leased(run, lambda: self._sleep(run, step, what))
            if found is None:
                run.mark_asleep()
        return found

    def _check_and_register(
        self, run: ActiveRun, step: str, what: Awaited, timeout: timedelta | None
    ) -> Arrived | Registered | Prerequisites:
        with self._database.transaction() as session:
            return waits.look(session, run.model, run.claim, step, what, timeout=timeout)

    def _sleep(self, run: ActiveRun, step: str, what: Awaited) -> Arrived | Prerequisites | None:
        with self._database.transaction() as session:
            return waits.sleep(session, run.model, run.claim, step, what)

    def _act(self, act: Callable[[Session], object]) -> None:
        with self._database.transaction() as session:
            act(session)

    def emit(self, run: ActiveRun, step: str, name: str, payload: str) -> None:
        """Emit an event, once."""

        def write() -> None:
            with suppress(AlreadySaved), self._database.transaction() as session:
                events.emit_encoded(session, run.model, name, payload)
                checkpoints.save_first(session, run.model, run.claim, step, "null")

        write_while_leased(run, write)
        self._asleep.set()

    def spawn(
        self, run: ActiveRun, step: str, calls: Sequence[Call[Any, Any]], keywords: SpawnKeywords
    ) -> Json:
        """Spawn children, once; returns what the step remembers of them."""

        def write() -> Json:
            try:
                with self._database.transaction() as session:
                    return child_tasks.spawn(session, run.model, run.claim, step, calls, keywords=keywords)
            except AlreadySaved as earlier:
                return earlier.value

        spawned = write_while_leased(run, write)
        self._ready.set()
        return spawned


Ref = tuple[type["DurableTask"], UUID]


def payload(coder: Coder, value: Json, step: str) -> Any:
    """The payload of the event that came. Raises TimedOut."""
    _check_in_time(value, step)
    return decode(coder, value["payload"], step)


def results(tasks: Sequence[Ref], value: Json, step: str) -> list[Any]:
    """The results of the tasks that have ended. Raises TimedOut, or for the first that has none ChildFailed,
    ChildCancelled or TaskNotFound."""
    _check_in_time(value, step)
    return [_result(model, task_id, end, step) for (model, task_id), end in zip(tasks, value, strict=True)]


def _result(model: type[DurableTask], task_id: UUID, end: Mapping[str, Json], step: str) -> Any:
    match end["state"]:
        case TaskState.COMPLETED:
            handler = model.__handlers__.get(end["name"])
            return decode(handler.result_coder if handler else UNTYPED, end["result"], step)
        case TaskState.FAILED:
            raise TaskFailed(task_id, TaskError.from_json(end["error"] or {}))
        case TaskState.CANCELLED:
            raise TaskCancelled(task_id)
        case _:
            raise TaskNotFound(model.__queue__, task_id)


def _check_in_time(value: Json, step: str) -> None:
    if isinstance(value, dict) and value.get(TIMED_OUT):
        raise TimedOut(f"{step}: it didn't come in time")
