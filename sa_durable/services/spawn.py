"""Spawn a task: insert it, or get the task that holds its key.

A bounded loop of separate statements. At READ COMMITTED, each statement sees what was committed before it. A
single statement that inserts and selects would return nothing if the winner commits while the statement waits
(measured). No unique violation is ever raised, so the caller's transaction stays usable.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from .. import telemetry
from ..codec import NotJson
from ..errors import DuplicateTask, IdempotencyConflict, InvalidResult, RetryTransaction, TaskNotFound
from ..handlers import Call
from ..statements import keys as key_stmt
from ..statements import spawn as stmt
from ..telemetry import SpawnOutcome
from ..values import OnDuplicate, SpawnKeywords, SpawnResult, TaskError, TaskResult, TaskState
from .cancellation import cancel, lock
from .execute import connection_for, execute, execute_on
from .notifications import can_notify
from .prepare import PreparedSpawn, app_attributes, prepare
from .spawn_results import TaskAttacher

if TYPE_CHECKING:
    from ..models import DurableTask

R = TypeVar("R")
Model = type["DurableTask"]

MAX_ROUNDS = 20
"""Most rounds of the loop.

A round ends without a task only if the holder left between two statements, or had expired. A stress test with
twelve clients that spawned, cancelled, expired and deleted three hot keys needed six rounds.
"""


def spawn(session: Session, call: Call[Any, R], keywords: SpawnKeywords) -> SpawnResult[R]:
    """Add a task, or return the task that holds its key: see Durable.spawn."""
    prepared = prepare(call, keywords)
    return insert_or_get(session, prepared)


def insert_or_get(session: Session, prepared: PreparedSpawn, *, wait: bool = True) -> SpawnResult[Any]:
    """Insert a prepared task, or return the task that holds its key.

    Args:
        session: The caller's session.
        prepared: The spawn.
        wait: Whether to wait for a transaction that has locked the holder or is ending it. False: raise Busy
            if the holder must be changed and is locked.

    Raises:
        DuplicateTask, IdempotencyConflict: A task holds the key.
        RetryTransaction: Concurrent transactions took and released the key `MAX_ROUNDS` times.
        SchemaOutdated: The database lacks a table, column or index.
        Busy: Another transaction has locked the holder.
    """
    model, row = prepared.model, prepared.row()
    connection = connection_for(session, model)
    insert = stmt.insert_task(
        model,
        keyed=prepared.key is not None,
        scheduled=stmt.DELAY in row,
        limited=stmt.MAX_DURATION in row,
        own=tuple(prepared.app_columns),
        notify=can_notify(connection),
    )
    parameters = {**row, **prepared.app_columns} if prepared.app_columns else row
    replaced = False
    for number in range(MAX_ROUNDS):
        created = execute_on(connection, insert, parameters).first() if wait or number else None
        if created is not None:
            outcome = SpawnOutcome.REPLACED if replaced else SpawnOutcome.CREATED
            telemetry.record(model.__queue__, row["name"], outcome, row["id"])
            state = TaskState(created.state)
            return SpawnResult(row["id"], row["run_id"], 1, True, state, True, model, TaskAttacher(session))
        holder = execute_on(
            connection, key_stmt.holder(model), {"key": prepared.key, "params": prepared.params}
        ).first()
        if holder is None:
            continue  # the holder has just left, or isn't visible to this snapshot yet
        if holder.expired:
            execute(session, key_stmt.release_expired(model, holder.id), model=model)
            continue
        if (found := _resolve_duplicate(session, prepared, holder, wait=wait)) is not None:
            return found
        replaced = prepared.options.on_duplicate is OnDuplicate.REPLACE
    raise RetryTransaction(
        f"could not acquire key {prepared.key!r} in queue {model.__queue__!r}: concurrent transactions took "
        f"and released it {MAX_ROUNDS} times. Nothing was written. Roll back and retry the transaction."
    )


def _resolve_duplicate(
    session: Session, prepared: PreparedSpawn, holder: Any, *, wait: bool
) -> SpawnResult[Any] | None:
    """Apply `on_duplicate` to the holder of the key. Returns None if the key may be free now."""
    check_same_task(prepared, holder)
    match prepared.options.on_duplicate:
        case OnDuplicate.RAISE:
            _record(prepared, SpawnOutcome.RAISED, holder)
            raise DuplicateTask(prepared.model.__queue__, prepared.key or "", holder.id, holder.state)
        case OnDuplicate.UPDATE if not holder.started and not TaskState(holder.state).terminal:
            if not wait:
                lock(session, prepared.model, [holder.id], wait=False)
            return _update(session, prepared, holder)
        case OnDuplicate.REPLACE:
            with suppress(TaskNotFound):  # the holder was cleaned up in the meantime
                cancel(session, prepared.model, holder.id, wait=wait)
            # A hold of "forever", or of a task that succeeded, doesn't end with the task.
            execute(session, key_stmt.release_held(prepared.model, holder.id), model=prepared.model)
            return None
        case _:
            return duplicate_result(session, prepared, holder)


def check_same_task(prepared: PreparedSpawn, holder: Any) -> None:
    """Raise IdempotencyConflict if the holder is another task than this spawn would add."""
    reason = None
    if holder.name != prepared.template.name:
        reason = f"called {holder.name!r}, not {prepared.template.name!r}"
    elif prepared.options.strict and not holder.params_match:
        reason = f"of the same name {holder.name!r} with other params"
    if reason:
        _record(prepared, SpawnOutcome.CONFLICT, holder)
        raise IdempotencyConflict(prepared.model.__queue__, prepared.key or "", holder.id, reason)


def duplicate_result(session: Session, prepared: PreparedSpawn, holder: Any) -> SpawnResult[Any]:
    """Record and return the result of a spawn that found `holder`."""
    _record(prepared, SpawnOutcome.RETURNED, holder)
    return _existing(session, prepared, holder, holder.state, params_match=holder.params_match)


def _update(session: Session, prepared: PreparedSpawn, holder: Any) -> SpawnResult[Any] | None:
    values = {**stmt.NO_OPTION, **prepared.row(), "id": holder.id}
    names = app_attributes(prepared.model)
    own = {
        attribute: prepared.app_columns[key]
        for attribute, key in names.items()
        if key in prepared.app_columns
    }
    notify = can_notify(session.connection(bind_arguments={"mapper": prepared.model}))
    statement = key_stmt.update_waiting(prepared.model, values, own, notify=notify)
    updated = execute(session, statement, model=prepared.model).first()
    if updated is None:
        return None  # the holder has started or ended in the meantime
    _record(prepared, SpawnOutcome.UPDATED, holder)
    return _existing(session, prepared, holder, updated.state, params_match=True)


def _existing(
    session: Session, prepared: PreparedSpawn, holder: Any, state: str, *, params_match: bool
) -> SpawnResult[Any]:
    return SpawnResult(
        holder.id,
        holder.run_id,
        holder.attempt,
        False,
        TaskState(state),
        params_match,
        prepared.model,
        TaskAttacher(session),
    )


def _record(prepared: PreparedSpawn, outcome: SpawnOutcome, holder: Any) -> None:
    telemetry.record(
        prepared.model.__queue__, prepared.template.name, outcome, holder.id, params_match=holder.params_match
    )


def result(session: Session, model: Model, task_id: UUID) -> TaskResult[Any]:
    """Return the state, result and error of a task: see Durable.result. Raises TaskNotFound."""
    row = execute(session, stmt.outcome(model), {"task_id": task_id}, model=model).first()
    if row is None:
        raise TaskNotFound(model.__queue__, task_id)
    state = TaskState(row.state)
    value = row.result
    handler = model.__handlers__.get(row.name)
    if state is TaskState.COMPLETED and handler is not None:
        try:
            value = handler.result_coder.decode(value, f"result of {row.name}")
        except NotJson as unfit:
            raise InvalidResult(f"{unfit}: stored by another version of the handler?") from unfit
    error = TaskError.from_json(row.error) if row.error else None
    return TaskResult(row.id, state, row.attempt, value, error)
