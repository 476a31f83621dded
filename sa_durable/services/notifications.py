"""Notifications: workers enable and disable them, and a flush of new task objects sends them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Table, TwoPhaseTransaction, event
from sqlalchemy.orm import Mapper, Session

from ..models import DurableTask, in_order
from ..statements import notifications as stmt
from ..statements.arrays import texts
from ..statements.notifications import NotificationKind
from ..values import TaskState
from .execute import execute, execute_on

Model = type[DurableTask]


def enable(session: Session, models: Iterable[Model], *, time: timedelta, echo: str) -> set[tuple[str, str]]:
    """Enable NOTIFY for these queues for `time`, and send the echo now.

    Needs a transaction of its own. Doesn't wait for locks: raises OperationalError after 50 ms if another
    transaction has locked a queue's row.

    Args:
        session: A session of the worker.
        models: The queues.
        time: How long notifications stay enabled.
        echo: A payload that the worker sends itself, to see whether notifications arrive.

    Returns:
        The queues as payloads name them: the oid of the queues table, and the queue's name.
    """
    execute(session, stmt.set_short_lock_timeout())
    names: set[tuple[str, str]] = set()
    for table, queues in _by_table(models).items():
        rows = execute(session, stmt.enable(table), {"names": texts(queues), "time": time})
        names.update((row.oid, row.name) for row in rows)
    execute(session, stmt.notify_self(), {"payload": echo})
    return names


def disable(session: Session, models: Iterable[Model]) -> None:
    """Disable NOTIFY for these queues. Needs a transaction of its own, and doesn't wait for locks."""
    execute(session, stmt.set_short_lock_timeout())
    for table, queues in _by_table(models).items():
        execute(session, stmt.disable(table), {"names": texts(queues)})


def notify_ready(session: Session, model: Model) -> None:
    """Notify idle workers that a task of the queue is ready."""
    execute(session, stmt.send(model, NotificationKind.READY), model=model)


def _by_table(models: Iterable[Model]) -> dict[Table, list[str]]:
    tables: dict[Table, list[str]] = {}
    for model in in_order(models):  # locks are taken in one order
        tables.setdefault(model.Queue.__table__, []).append(model.__queue__)
    return tables


def can_notify(connection: Connection) -> bool:
    """Return whether the transaction may notify: PostgreSQL can't prepare a two-phase one that has."""
    return not isinstance(connection.get_transaction(), TwoPhaseTransaction)


_SENT = f"{__name__}.sent"


@event.listens_for(DurableTask, "after_insert", propagate=True)
def _after_insert(_: Mapper[Any], connection: Connection, task: DurableTask) -> None:
    """Notify for a task that was added to a session as an object, once a queue and (nested) transaction."""
    state = task.__dict__.get("state") or TaskState.PENDING
    if state not in (TaskState.PENDING, TaskState.SLEEPING) or not can_notify(connection):
        return
    kind = NotificationKind.READY if state == TaskState.PENDING else NotificationKind.WAKE
    transaction = connection.get_nested_transaction() or connection.get_transaction()
    known, sent = connection.info.get(_SENT, (lambda: None, set()))
    if known() is not transaction:
        sent = set()
        connection.info[_SENT] = (ref(transaction), sent)
    if (type(task), kind) not in sent:
        sent.add((type(task), kind))
        execute_on(connection, stmt.send(type(task), kind))
