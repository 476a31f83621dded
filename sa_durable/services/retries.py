"""Retry tasks that failed or were cancelled.

A retried task takes its key back, which another task may hold by now. As in services.spawn, a select finds
that out first. The update that takes the key can still lose a race, so it has a savepoint of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from .. import telemetry
from ..errors import InvalidState, KeyTaken, RetryTransaction, TaskNotFound
from ..ids import uuid7
from ..models.names import named
from ..statements import keys as key_stmt
from ..statements import retries as stmt
from ..statements import wake as wake_stmt
from ..statements.arrays import uuids
from ..statements.cache import cached_statement
from ..statements.tables import table_of
from ..telemetry import SpawnOutcome
from ..values import SpawnResult, TaskState
from .execute import connection_for, execute, execute_on
from .notifications import can_notify
from .prepare import app_attributes
from .spawn import MAX_ROUNDS
from .spawn_results import TaskAttacher

if TYPE_CHECKING:
    from ..models import DurableTask

Model = type["DurableTask"]

_RULE = "only a failed or cancelled task can be retried"


def retry(session: Session, model: Model, task_id: UUID, *, as_new: bool, detach: bool) -> SpawnResult[Any]:
    """Give a task another attempt, or spawn a copy of it: see Durable.retry."""
    connection = connection_for(session, model)
    row = execute_on(connection, stmt.lock(model), {"task_id": task_id}).first()
    if row is None:
        raise TaskNotFound(model.__queue__, task_id)
    if row.state not in (TaskState.FAILED, TaskState.CANCELLED):
        raise InvalidState(model.__queue__, task_id, row.state, _RULE)
    act, notify = _retry_as_new if as_new else _retry_in_place, can_notify(connection)
    return act(session, model, task_id, row, detach=detach, notify=notify)


def _retry_in_place(
    session: Session, model: Model, task_id: UUID, row: Any, *, detach: bool, notify: bool
) -> SpawnResult[Any]:
    run_id, takes_key = uuid7(), bool(row.takes_key)
    attempt: int | None = None
    # The task registers new waits for the tasks that it still joins.
    execute(session, wake_stmt.forget_ended(model), {"ids": uuids([task_id])}, model=model)
    for _ in range(MAX_ROUNDS):
        if takes_key and _is_taken(session, model, row, detach=detach):
            takes_key = False
        detached = bool(row.takes_key) and not takes_key
        statement = stmt.retry_in_place(model, task_id, run_id, detached=detached, notify=notify)
        if not takes_key:
            attempt = execute(session, statement, model=model).one().attempt
            break
        try:
            with session.begin_nested():
                attempt = execute(session, statement, model=model).one().attempt
            break
        except IntegrityError as error:
            if named("uq", table_of(model).name, "key") not in str(error.orig):
                raise  # the application's own
    if attempt is None:
        raise _key_contended(model, row)
    return SpawnResult(task_id, run_id, attempt, False, TaskState.PENDING, True, model, TaskAttacher(session))


def _retry_as_new(
    session: Session, model: Model, task_id: UUID, row: Any, *, detach: bool, notify: bool
) -> SpawnResult[Any]:
    new = {"id": uuid7(), "run_id": uuid7(), "task_id": task_id}
    keyed = row.idempotency_key is not None and row.key_hold is not None
    if row.held:  # with hold "forever" or "succeeded": the copy gets the key
        execute(session, key_stmt.release_held(model, task_id), model=model)
    for _ in range(MAX_ROUNDS):
        if keyed and _is_taken(session, model, row, detach=detach):
            keyed = False
        statement = stmt.retry_as_new(model, _copied_columns(model), keyed=keyed, notify=notify)
        parameters = {**new, "hold": row.key_hold} if keyed else new
        if execute(session, statement, parameters, model=model).first() is not None:
            telemetry.record(model.__queue__, row.name, SpawnOutcome.CREATED, new["id"])
            state = TaskState.PENDING
            return SpawnResult(new["id"], new["run_id"], 1, True, state, True, model, TaskAttacher(session))
    raise _key_contended(model, row)


def _is_taken(session: Session, model: Model, row: Any, *, detach: bool) -> bool:
    """Return whether another task holds the key, and the retry goes on without. Raises KeyTaken."""
    parameters = {"key": row.idempotency_key, "params": "null"}
    holder = execute(session, key_stmt.holder(model), parameters, model=model).first()
    if holder is None:
        return False
    if holder.expired:
        execute(session, key_stmt.release_expired(model, holder.id), model=model)
        return False
    if not detach:
        raise KeyTaken(model.__queue__, row.idempotency_key, holder.id, holder.state)
    return True


def _key_contended(model: Model, row: Any) -> RetryTransaction:
    return RetryTransaction(
        f"could not acquire key {row.idempotency_key!r} in queue {model.__queue__!r}: concurrent transactions"
        f" took and released it {MAX_ROUNDS} times. Nothing was written. Roll back and retry the transaction."
    )


@cached_statement
def _copied_columns(model: Model) -> tuple[str, ...]:
    """Return the application's columns that a copy can set."""
    columns = table_of(model).c
    return tuple(
        key
        for key in app_attributes(model).values()
        if columns[key].computed is None and columns[key].identity is None
    )
