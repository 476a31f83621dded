"""Events: emitting them, deciding which row is the event, and waking who waits.

Emitting appends and takes no lock, however long the caller's transaction stays open. The rest is done in short
transactions of the library's own.
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
    """Append event `name` to a queue: see Durable.emit."""
    emit_encoded(session, model, check_name(name), encode(name, payload))


def emit_encoded(session: Session, model: Model, name: str, payload: str) -> None:
    """As `emit`, with a checked name and JSON text."""
    parameters = {"id": uuid7(), "name": name, "payload": payload}
    connection = connection_for(session, model)
    execute_on(connection, stmt.emit(model, notify=can_notify(connection)), parameters)


def encode(name: str, payload: Json) -> str:
    """An event's payload as JSON text: plain JSON, or what pydantic makes of its type. Raises InvalidEvent."""
    what = f"payload of event {name!r}"
    try:
        return dumps(_PLAIN.encode(payload, what), place=what)
    except NotJson as error:
        raise InvalidEvent(str(error)) from error


def check_name(name: str) -> str:
    """`name` itself, if an event can be called so. Raises InvalidEvent."""
    if (
        not isinstance(name, str)
        or not 1 <= len(name) <= NAME_LENGTH
        or not name.isprintable()
        or name.startswith("$")
    ):
        raise InvalidEvent(
            f"event name {short_repr(name)}: 1 to {NAME_LENGTH} printable characters, not starting with '$' (the library's own)"
        )
    return name


@dataclass(frozen=True, slots=True)
class Settled:
    """`names` were decided about; `waiting` waits in other queues or this one were marked; `more`: there may be more
    to settle now."""

    names: int
    waiting: int
    more: bool


def settle(session: Session, model: Model, *, limit: int) -> Settled:
    """Decide about up to `limit` rows, and mark who waits for them: `wake` is next, for each queue beside.

    In a transaction of its own. Names that another worker is deciding about are left to it.
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
    """Those of `names` that nobody else is deciding about, in order; they are ours until the end of the transaction."""
    if not (wanted := sorted(set(names))):
        return []
    return sorted(execute(session, locks.try_lock_names(queue), {"names": texts(wanted)}).scalars())


def settle_one(session: Session, model: Model, name: str) -> None:
    """Decide about event `name` at once, for a run that needs it now. Waits for another worker that is at it.

    In a transaction of its own: what is marked belongs to other tasks, and nobody holds waits and then wants a task.
    """
    execute(session, locks.lock_name(model.__queue__), {"name": name})
    _settle(session, model, [name])


def _settle(session: Session, model: Model, names: Sequence[str]) -> int:
    rows = execute(session, stmt.settle(model), {"names": texts(names)})
    decided = sorted({row.name for row in rows if not row.dropped})
    return _mark_waits(session, model, model.__queue__, decided) if decided else 0


def _mark_waits_for_ended(session: Session, model: Model, names: Sequence[str]) -> int:
    """Tasks have ended: whoever waits for them is in any queue, and they wait for nothing any more."""
    execute(session, stmt.discard(model), {"names": texts(names)})
    waiting = sum(_mark_waits(session, other, model.__queue__, names) for other in queues_beside(model))
    execute(session, wake_stmt.forget_ended(model), {"ids": uuids(_task_ids(names))})
    return waiting


def _task_ids(names: Iterable[str]) -> Iterator[UUID]:
    """Of the tasks whose ends these are. A name that somebody has made by hand must not stop those of others."""
    for name in names:
        with suppress(ValueError):
            yield UUID(name.removeprefix(TASK_EVENT))


def _mark_waits(session: Session, waiters: Model, queue: str, names: Sequence[str]) -> int:
    parameters = {"names": texts(names), "queue": queue}
    # Workers of another queue may be others than this one.
    statement = wake_stmt.mark_settled(waiters, notify=waiters.__queue__ != queue)
    return len(execute(session, statement, parameters).all())


def catch_up(session: Session, model: Model, after: Mapping[str, str], *, limit: int) -> CaughtUp:
    """Mark those of `model` who wait for tasks of other queues that have ended, or are gone: for queues whose workers
    don't know `model`, and so can't. Of each queue it looks at up to `limit` names, those behind `after`.

    In a transaction of its own. Call it again and again, with where it got to.
    """
    others: dict[str, list[Model]] = {}  # by name: schemas may have one each
    for queue, twins in groupby(queues_beside(model), key=lambda queue: queue.__queue__):
        if (called_so := list(twins)) != [model]:
            others[queue] = called_so
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
    """How many waits were `marked`, and the last name of each queue of which there are more."""

    marked: int
    after: Mapping[str, str]


def _ended_names(session: Session, models: Iterable[Model], names: Iterable[str]) -> list[str]:
    """Those events of ends whose task has ended, or is gone."""
    ids = {UUID(name.removeprefix(TASK_EVENT)): name for name in names}
    if not ids:
        return []
    active: set[UUID] = set()
    for model in models:
        rows = execute(session, claim_stmt.statuses(model), {"ids": uuids(ids)}, model=model)
        active.update(row.id for row in rows if not TaskState(row.state).terminal)
    return [name for task_id, name in ids.items() if task_id not in active]


def wake(session: Session, model: Model, *, limit: int) -> int:
    """Make up to `limit` tasks ready whose events are there. Returns how many; locked ones are woken later."""
    woken: int = execute(session, wake_stmt.wake(model), {"limit": limit}).one().woken
    return woken


def forget_idle(session: Session, model: Model, *, limit: int) -> int:
    """Drop up to `limit` settled waits that wake nobody, so that they cost nothing at the next look. Returns how many."""
    return len(execute(session, wake_stmt.forget_idle(model), {"limit": limit}).all())
