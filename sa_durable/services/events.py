"""Events: emit them, settle them (decide which row of a name counts), and wake the tasks that wait.

Emitting appends a row and takes no lock, however long the caller's transaction stays open. Settling and
waking happen in short transactions of the library's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.orm import Session

from ..codec import Coder, NotJson, dumps, short_repr
from ..errors import InvalidEvent
from ..ids import uuid7
from ..models import queues_beside
from ..statements import claims as claim_stmt
from ..statements import events as stmt
from ..statements import locks
from ..statements import wake as wake_stmt
from ..statements.arrays import texts, uuids
from ..statements.events import TASK_EVENT
from ..values import Json, TaskState
from .execute import connection_for, execute, execute_on
from .notifications import can_notify

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]

NAME_LENGTH = 255
_PLAIN = Coder(object)


def emit(session: Session, model: Model, name: str, payload: Json) -> None:
    """Append event `name` to a queue: see Durable.emit_event."""
    emit_encoded(session, model, check_name(name), encode(name, payload))


def emit_encoded(session: Session, model: Model, name: str, payload: str) -> None:
    """Append an event with a checked name, whose payload is JSON text."""
    parameters = {"id": uuid7(), "name": name, "payload": payload}
    connection = connection_for(session, model)
    execute_on(connection, stmt.emit(model, notify=can_notify(connection)), parameters)


def encode(name: str, payload: Json) -> str:
    """Return an event's payload as JSON text. Raises InvalidEvent if it can't be written as JSON."""
    what = f"payload of event {name!r}"
    try:
        return dumps(_PLAIN.encode(payload, what), place=what)
    except NotJson as error:
        raise InvalidEvent(str(error)) from error


def check_name(name: str) -> str:
    """Return `name` if it can be an event's name. Raises InvalidEvent."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= NAME_LENGTH
        or not name.isprintable()
        or name.startswith("$")
    ):
        raise InvalidEvent(
            f"event name {short_repr(name)}: a name has 1 to {NAME_LENGTH} printable characters and doesn't "
            "start with '$', which is reserved. Nothing was sent."
        )
    return name


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of `settle`."""

    names: int
    """How many names were settled."""
    waiting: int
    """How many waits were marked, in this queue and others."""
    more: bool
    """Whether there may be more to settle now."""


def settle(session: Session, model: Model, *, limit: int) -> Settled:
    """Settle up to `limit` rows, and mark the waits for their names.

    Call `wake` for each queue of the Base next. Needs a transaction of its own. Skips names that another
    worker is settling.
    """
    rows = list(execute(session, stmt.unsettled(model), {"limit": limit}).scalars())
    if not rows:
        return Settled(0, 0, more=False)
    ours = _lock_names(session, model.__queue__, rows)
    waiting = 0
    if ended := [name for name in ours if name.startswith(TASK_EVENT)]:
        waiting += _mark_waits_for_ended(session, model, ended)
    if emitted := [name for name in ours if not name.startswith(TASK_EVENT)]:
        waiting += _settle(session, model, emitted)
    return Settled(len(ours), waiting, more=len(rows) == limit and bool(ours))


def _lock_names(session: Session, queue: str, names: Iterable[str]) -> list[str]:
    """Lock names for settling until the end of the transaction, and return them, sorted.

    Skips names that another worker has locked.
    """
    if not (wanted := sorted(set(names))):
        return []
    return sorted(execute(session, locks.try_lock_names(queue), {"names": texts(wanted)}).scalars())


def settle_one(session: Session, model: Model, name: str) -> None:
    """Settle event `name` at once, for a run that needs it now. Waits for a worker that is settling it.

    Needs a transaction of its own: it locks waits of other tasks, and no transaction may lock waits before
    tasks.
    """
    execute(session, locks.lock_name(model.__queue__), {"name": name})
    _settle(session, model, [name])


def _settle(session: Session, model: Model, names: Sequence[str]) -> int:
    rows = execute(session, stmt.settle(model), {"names": texts(names)})
    decided = sorted({row.name for row in rows if not row.dropped})
    return _mark_waits(session, model, model.__queue__, decided) if decided else 0


def _mark_waits_for_ended(session: Session, model: Model, names: Sequence[str]) -> int:
    """Mark the waits, in all queues, for tasks that have ended, and delete the waits of these tasks."""
    execute(session, stmt.discard(model), {"names": texts(names)})
    waiting = sum(_mark_waits(session, other, model.__queue__, names) for other in queues_beside(model))
    execute(session, wake_stmt.forget_ended(model), {"ids": uuids(_task_ids(names))})
    return waiting


def _task_ids(names: Iterable[str]) -> Iterator[UUID]:
    """Yield the ids of the tasks whose ends these names announce. Skips names without an id."""
    for name in names:
        with suppress(ValueError):
            yield UUID(name.removeprefix(TASK_EVENT))


def _mark_waits(session: Session, waiters: Model, queue: str, names: Sequence[str]) -> int:
    parameters = {"names": texts(names), "queue": queue}
    # Another queue may have other workers, which this worker must notify.
    statement = wake_stmt.mark_settled(waiters, notify=waiters.__queue__ != queue)
    return len(execute(session, statement, parameters).all())


def catch_up(session: Session, model: Model, after: Mapping[str, str], *, limit: int) -> CaughtUp:
    """Mark waits of a queue for tasks of other queues that have ended or were deleted.

    The workers of those queues may not know `model`, and then can't mark its waits. Needs a transaction of
    its own.

    Args:
        session: A session of the worker.
        model: The queue whose waits are marked.
        after: The last name that was read, by queue, from the result of the previous call.
        limit: The largest number of names to read from each queue.
    """
    others: dict[str, list[Model]] = {}  # by name: each schema may have a queue of this name
    for queue, same_named in groupby(queues_beside(model), key=lambda queue: queue.__queue__):
        if (models := list(same_named)) != [model]:
            others[queue] = models
    places = [after.get(queue, "") for queue in others]
    parameters = {"queues": texts(others), "after": texts(places), "limit": limit}
    names: dict[str, list[str]] = {}
    for row in execute(session, wake_stmt.awaited_events(model), parameters):
        names.setdefault(row.queue, []).append(row.event_name)
    marked = 0
    for queue, found in names.items():
        ended = _ended_names(session, others[queue], {name for name in found if name.startswith(TASK_EVENT)})
        if ours := _lock_names(session, queue, ended):
            marked += _mark_waits(session, model, queue, ours)
    return CaughtUp(marked, {queue: found[-1] for queue, found in names.items() if len(found) >= limit})


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The result of `catch_up`."""

    marked: int
    """How many waits were marked."""
    after: Mapping[str, str]
    """The last name that was read, for each queue that may have more."""


def _ended_names(session: Session, models: Iterable[Model], names: Iterable[str]) -> list[str]:
    """Return the names whose task has ended or was deleted."""
    ids = {UUID(name.removeprefix(TASK_EVENT)): name for name in names}
    if not ids:
        return []
    active: set[UUID] = set()
    for model in models:
        rows = execute(session, claim_stmt.statuses(model), {"ids": uuids(ids)}, model=model)
        active.update(row.id for row in rows if not TaskState(row.state).terminal)
    return [name for task_id, name in ids.items() if task_id not in active]


def wake(session: Session, model: Model, *, limit: int) -> int:
    """Make up to `limit` tasks ready whose events are settled. Returns their number. Skips locked tasks."""
    woken: int = execute(session, wake_stmt.wake(model), {"limit": limit}).one().woken
    return woken


def forget_idle(session: Session, model: Model, *, limit: int) -> int:
    """Delete up to `limit` settled waits that wake no task: `wake` reads less then. Returns their number."""
    return len(execute(session, wake_stmt.forget_idle(model), {"limit": limit}).all())
