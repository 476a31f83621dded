"""Wait for events and tasks, emit events and spawn children: blocking functions that contexts call."""

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
from .step_values import UNTYPED, decode

if TYPE_CHECKING:
    from ...models import DurableTask

TaskRef = tuple[type["DurableTask"], UUID]


class Waits:
    """Operations of a run on events and other tasks.

    Each of them raises the signal that ends the run (Cancelled, LeaseLost), if one has.

    Args:
        database: The worker's database.
        asleep: Set when a run has gone to sleep or an event was emitted.
        ready: Set when a task was spawned.
    """

    def __init__(self, database: Database, *, asleep: Wakeup, ready: Wakeup) -> None:
        self._database, self._asleep, self._ready = database, asleep, ready

    def wait(self, run: ActiveRun, step: str, awaited: Awaited, timeout: timedelta | None) -> Json:
        """Return the checkpoint of a wait, or put the run to sleep.

        Args:
            run: The run that waits.
            step: Key of the wait's checkpoint.
            awaited: The event or the tasks to wait for.
            timeout: Longest time to wait, from when the wait was first registered; None for no limit.

        Returns:
            What was saved when it arrived, or when the timeout had passed. None if the run sleeps now.
        """
        while True:
            match self.register(run, step, awaited, timeout) or self._fall_asleep(run, step, awaited):
                case Arrived(value):
                    return value
                case Prerequisites() as missing:
                    self._run_prerequisites(run, missing)
                case None:
                    self._asleep.set()
                    return None

    def register(
        self, run: ActiveRun, step: str, awaited: Awaited, timeout: timedelta | None
    ) -> Arrived | None:
        """Return the arrival if it has happened; else register the wait, which wakes the run once it sleeps.

        Takes the arguments of `wait`.
        """
        while True:
            match write_while_leased(run, lambda: self._check_and_register(run, step, awaited, timeout)):
                case Prerequisites() as missing:
                    self._run_prerequisites(run, missing)
                case Registered():
                    return None
                case Arrived() as arrived:
                    return arrived

    def _run_prerequisites(self, run: ActiveRun, missing: Prerequisites) -> None:
        for act in missing.first:
            write_while_leased(run, partial(self._in_transaction, act))

    def _fall_asleep(self, run: ActiveRun, step: str, awaited: Awaited) -> Arrived | Prerequisites | None:
        with run.finishing_block():
            found = write_while_leased(run, lambda: self._check_and_sleep(run, step, awaited))
            if found is None:
                run.mark_asleep()
        return found

    def _check_and_register(
        self, run: ActiveRun, step: str, awaited: Awaited, timeout: timedelta | None
    ) -> Arrived | Registered | Prerequisites:
        with self._database.transaction() as session:
            return waits.find_or_register(session, run.model, run.claim, step, awaited, timeout=timeout)

    def _check_and_sleep(self, run: ActiveRun, step: str, awaited: Awaited) -> Arrived | Prerequisites | None:
        with self._database.transaction() as session:
            return waits.sleep(session, run.model, run.claim, step, awaited)

    def _in_transaction(self, act: Callable[[Session], object]) -> None:
        with self._database.transaction() as session:
            act(session)

    def emit(self, run: ActiveRun, step: str, name: str, payload: str) -> None:
        """Emit an event, once.

        Args:
            run: The run that emits it.
            step: Key of the checkpoint that says that it was emitted.
            name: The event's name.
            payload: The payload, as JSON text.
        """

        def write() -> None:
            with suppress(AlreadySaved), self._database.transaction() as session:
                events.emit_encoded(session, run.model, name, payload)
                checkpoints.save_first(session, run.model, run.claim, step, "null")

        write_while_leased(run, write)
        self._asleep.set()

    def spawn(
        self, run: ActiveRun, step: str, calls: Sequence[Call[Any, Any]], keywords: SpawnKeywords
    ) -> Json:
        """Spawn children, once, and return the checkpoint that names them.

        Args:
            run: The parent's run.
            step: Key of the checkpoint.
            calls: The calls to spawn.
            keywords: Spawn options of all of them.
        """

        def write() -> Json:
            try:
                with self._database.transaction() as session:
                    return child_tasks.spawn(session, run.model, run.claim, step, calls, keywords=keywords)
            except AlreadySaved as earlier:
                return earlier.value

        spawned = write_while_leased(run, write)
        self._ready.set()
        return spawned


def read_payload(coder: Coder, saved: Json, step: str) -> Any:
    """Return the payload of the event that arrived.

    Args:
        coder: Decodes the payload.
        saved: The checkpoint of the wait.
        step: Its key, for errors.

    Raises:
        TimedOut: The timeout passed before the event was emitted.
        InvalidResult: The payload doesn't match the type.
    """
    if _has_timed_out(saved):
        raise TimedOut(f"{step}: the event wasn't emitted within the timeout")
    return decode(coder, saved["payload"], step)


def read_results(tasks: Sequence[TaskRef], saved: Json, step: str) -> list[Any]:
    """Return the results of the tasks that have ended, in order.

    Args:
        tasks: The tasks that were joined.
        saved: The checkpoint of the wait.
        step: Its key, for errors.

    Raises:
        TimedOut: The timeout passed before all tasks had ended.
        TaskFailed: The first task without a result failed.
        TaskCancelled: The first task without a result was cancelled.
        TaskNotFound: The first task without a result doesn't exist.
        InvalidResult: A result doesn't match its handler's return type.
    """
    if _has_timed_out(saved):
        raise TimedOut(f"{step}: the tasks didn't end within the timeout")
    return [_result(model, task_id, end, step) for (model, task_id), end in zip(tasks, saved, strict=True)]


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


def _has_timed_out(saved: Json) -> bool:
    return isinstance(saved, dict) and bool(saved.get(TIMED_OUT))
