"""Spawning: insert, or get the task that holds the key.

A bounded loop of separate statements. Each sees what was committed before it; one statement that inserts and selects
returns nothing when the winner commits while it waits (measured). No unique violation is ever raised, so the
caller's transaction lives on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.orm.session import make_transient_to_detached

from .. import policy, telemetry
from ..codec import NotJson, check_plain, dumps, once_key
from ..errors import (
    DuplicateTask,
    IdempotencyConflict,
    InvalidOptions,
    InvalidResult,
    RetryTransaction,
    TaskNotFound,
)
from ..handlers import Call
from ..ids import uuid7
from ..models import queue_of
from ..models.tables import task_columns
from ..statements import tasks as stmt
from ..statements.memo import memo
from ..telemetry import SpawnOutcome
from ..values import (
    OnDuplicate,
    RetryPolicy,
    SpawnKeywords,
    SpawnOptions,
    SpawnResult,
    TaskError,
    TaskResult,
    TaskState,
)
from .cancellation import cancel
from .database import ensure_schema, execute

if TYPE_CHECKING:
    from ..models import DurableTask

R = TypeVar("R")
Model = type["DurableTask"]

# A round ends without a task only when the holder left between two statements, or was found expired. Twenty such
# in a row have not been seen under any load (docs/decisions/0003).
ROUNDS = 20
_NO_DELAY = timedelta(0)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spawn, resolved and encoded: what is inserted, and what happens if its key is held."""

    model: Model
    options: SpawnOptions
    key: str | None
    row: dict[str, Any]  # parameters of statements.tasks.insert_task
    own: Mapping[str, Any]  # the application's columns, by the table's keys


def spawn(session: Session, call: Call[Any, R], keywords: SpawnKeywords) -> SpawnResult[R]:
    """Add a task, or find the one that holds its key: see Durable.spawn."""
    prepared = prepare(call, keywords)
    _before_insert(session, prepared.model)
    return insert_or_get(session, prepared)


def prepare(call: Call[Any, Any], keywords: SpawnKeywords) -> Prepared:
    """Resolve the options of a call and encode its row. Raises InvalidOptions; touches no database."""
    model = queue_of(call.model)
    options = policy.resolve(keywords, call.options, call.defaults, model.__spawn_defaults__)
    key = options.idempotency_key
    if key is None and options.only_once:
        key = once_key(call.name, call.params)
    row: dict[str, Any] = {
        "id": uuid7(),
        "name": call.name,
        "params": call.params_text,
        "headers": _headers_text(options.headers),
        "priority": options.priority,
        "run_id": uuid7(),
        "max_attempts": options.max_attempts,
        "retry": _retry_text(options.retry),
        "parent_queue": None,
        "parent_id": None,
    }
    if key is not None:
        row |= {"idempotency_key": key, "key_hold": options.hold.value, "key_ttl": options.key_ttl}
    if options.delay is not None or options.run_at is not None:
        row |= {"run_at": options.run_at, "delay": options.delay or _NO_DELAY}
    return Prepared(model, options, key, row, _own_columns(model, options.columns) if options.columns else {})


def _before_insert(session: Session, model: Model) -> None:
    ensure_schema(session, model)
    if session.autoflush:
        session.flush()  # parents first: a task may refer to rows that are still pending in the session


def insert_or_get(session: Session, prepared: Prepared) -> SpawnResult[Any]:
    """The loop. Raises DuplicateTask, IdempotencyConflict or RetryTransaction."""
    model, row = prepared.model, prepared.row
    insert = stmt.insert_task(
        model, keyed=prepared.key is not None, scheduled="delay" in row, own=tuple(prepared.own)
    )
    parameters = {**row, **prepared.own} if prepared.own else row
    replaced = False
    for _ in range(ROUNDS):
        created = execute(session, insert, parameters).first()
        if created is not None:
            outcome = SpawnOutcome.REPLACED if replaced else SpawnOutcome.CREATED
            return _created(session, prepared, created.state, outcome)
        holder = execute(session, stmt.holder(model), {"key": prepared.key, "params": row["params"]}).first()
        if holder is None:
            continue  # it has just left; or its row is not ours to see yet
        if holder.expired:
            execute(session, stmt.release_expired(model), {"task_id": holder.id})
            continue
        if (found := _settle(session, prepared, holder)) is not None:
            return found
        replaced = True
    raise RetryTransaction(
        f"key {prepared.key!r} of queue {model.__queue__!r} changed hands {ROUNDS} times during one spawn: nothing was "
        "written; roll back and run the transaction again"
    )


def _settle(session: Session, prepared: Prepared, holder: Any) -> SpawnResult[Any] | None:
    """What a spawn comes to whose key `holder` holds; None: the key may be free now, insert again."""
    check_same_task(prepared, holder)
    match prepared.options.on_duplicate:
        case OnDuplicate.RAISE:
            _record(prepared, SpawnOutcome.RAISED, holder)
            raise DuplicateTask(prepared.model.__queue__, prepared.key or "", holder.id, holder.state)
        case OnDuplicate.UPDATE if not holder.started:
            return _update(session, prepared, holder)
        case OnDuplicate.REPLACE:
            cancel(session, prepared.model, holder.id)
            return None
        case _:
            return returned(session, prepared, holder)


def check_same_task(prepared: Prepared, holder: Any) -> None:
    """Raise IdempotencyConflict if the key means something else than this spawn."""
    reason = None
    if holder.name != prepared.row["name"]:
        reason = f"called {holder.name!r}, not {prepared.row['name']!r}"
    elif prepared.options.strict and not holder.params_match:
        reason = f"of the same name {holder.name!r} with other params"
    if reason:
        _record(prepared, SpawnOutcome.CONFLICT, holder)
        raise IdempotencyConflict(prepared.model.__queue__, prepared.key or "", holder.id, reason)


def returned(session: Session, prepared: Prepared, holder: Any) -> SpawnResult[Any]:
    """The result of a spawn that found `holder`."""
    _record(prepared, SpawnOutcome.RETURNED, holder)
    return _existing(session, prepared, holder, holder.state, params_match=holder.params_match)


def _update(session: Session, prepared: Prepared, holder: Any) -> SpawnResult[Any] | None:
    values = {"run_at": None, "delay": _NO_DELAY, **prepared.row, "id": holder.id}
    updated = execute(session, stmt.update_waiting(prepared.model, values, dict(prepared.own))).first()
    if updated is None:
        return None  # it was started, or left, meanwhile
    _record(prepared, SpawnOutcome.UPDATED, holder)
    return _existing(session, prepared, holder, updated.state, params_match=True)


def _created(session: Session, prepared: Prepared, state: str, outcome: SpawnOutcome) -> SpawnResult[Any]:
    row, model = prepared.row, prepared.model
    telemetry.record(model.__queue__, row["name"], outcome, row["id"])
    return new_result(prepared, state, partial(attached, session))


def new_result(
    prepared: Prepared, state: str, attach: Callable[[Model, UUID], DurableTask]
) -> SpawnResult[Any]:
    row = prepared.row
    return SpawnResult(row["id"], row["run_id"], 1, True, TaskState(state), True, prepared.model, attach)


def _existing(
    session: Session, prepared: Prepared, holder: Any, state: str, *, params_match: bool
) -> SpawnResult[Any]:
    return SpawnResult(
        holder.id,
        holder.run_id,
        holder.attempt,
        False,
        TaskState(state),
        params_match,
        prepared.model,
        partial(attached, session),
    )


def _record(prepared: Prepared, outcome: SpawnOutcome, holder: Any) -> None:
    telemetry.record(
        prepared.model.__queue__, prepared.row["name"], outcome, holder.id, params_match=holder.params_match
    )


def attached(session: Session, model: Model, task_id: UUID) -> DurableTask:
    """The task as an object of `session`, without a statement: its columns load when they are first read."""
    key = inspect(model).identity_key_from_primary_key((task_id,))
    present: DurableTask | None = session.identity_map.get(key)
    if present is None:
        present = manager_of_class(model).new_instance()
        present.id = task_id
        make_transient_to_detached(present)
        session.add(present)
    return present


@lru_cache(64)
def _retry_text(retry: RetryPolicy) -> str:
    return dumps(policy.retry_to_json(retry))


def _headers_text(headers: Mapping[str, Any] | None) -> str | None:
    if not headers:
        return None
    try:
        stored = dict(headers)
        check_plain(stored, "headers")
        return dumps(stored, what="headers", limit=64 * 1024)
    except NotJson as error:
        raise InvalidOptions(str(error)) from error


def _own_columns(model: Model, columns: Mapping[str, Any]) -> dict[str, Any]:
    own = own_attributes(model)
    if unknown := sorted(set(columns) - own.keys()):
        raise InvalidOptions(
            f"columns {unknown} are no columns of your own on {model.__name__}; it has {sorted(own) or 'none'}"
        )
    return {own[name]: value for name, value in columns.items()}


@memo
def own_attributes(model: Model) -> Mapping[str, str]:
    """The application's own columns of a task model: attribute to the table's column key."""
    library = task_columns().keys()
    table = stmt.table_of(model)
    return {
        attribute.key: attribute.columns[0].key
        for attribute in inspect(model).column_attrs
        if attribute.key not in library and attribute.columns[0].table is table
    }


def result(session: Session, model: Model, task_id: UUID) -> TaskResult[Any]:
    """How a task stands. Raises TaskNotFound."""
    row = execute(session, stmt.outcome(model), {"task_id": task_id}).first()
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
