"""Spawning: insert, or get the task that holds the key.

A bounded loop of separate statements. Each sees what was committed before it; one statement that inserts and selects
returns nothing when the winner commits while it waits (measured). No unique violation is ever raised, so the
caller's transaction lives on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import inspect
from sqlalchemy.orm import Session, class_mapper
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.orm.session import make_transient_to_detached

from .. import policy, telemetry
from ..codec import NotJson, dumps, once_key
from ..errors import (
    DuplicateTask,
    IdempotencyConflict,
    InvalidOptions,
    InvalidResult,
    RetryTransaction,
    TaskNotFound,
)
from ..handlers import Call, encode_headers
from ..ids import uuid7
from ..models import queue_of
from ..models.tables import task_columns
from ..statements import keys as key_stmt
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
from .database import connection_for, execute, run

if TYPE_CHECKING:
    from ..models import DurableTask

R = TypeVar("R")
Model = type["DurableTask"]

# A round ends without a task only when the holder left between two statements, or was found expired. A stress test
# with twelve clients that spawned, cancelled, expired and deleted three hot keys saw six in a row.
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
        "headers": encode_headers(options.headers),
        "priority": options.priority,
        "run_id": uuid7(),
        "max_attempts": options.max_attempts,
        "retry": _retry_text(options.retry),
        "parent_queue": None,
        "parent_id": None,
    }
    if key is not None:
        row |= {"idempotency_key": key, "key_hold": options.hold.value, stmt.KEY_TTL: options.key_ttl}
    if options.delay is not None or options.run_at is not None:
        row |= stmt.starts(options.run_at, options.delay or _NO_DELAY)
    return Prepared(model, options, key, row, _own_columns(model, options.columns) if options.columns else {})


def insert_or_get(session: Session, prepared: Prepared) -> SpawnResult[Any]:
    """The loop. Raises DuplicateTask, IdempotencyConflict, RetryTransaction or SchemaOutdated."""
    model, row = prepared.model, prepared.row
    insert = stmt.insert_task(
        model, keyed=prepared.key is not None, scheduled=stmt.DELAY in row, own=tuple(prepared.own)
    )
    parameters = {**row, **prepared.own} if prepared.own else row
    connection = connection_for(session, model)
    replaced = False
    for _ in range(ROUNDS):
        created = run(connection, insert, parameters).first()
        if created is not None:
            outcome = SpawnOutcome.REPLACED if replaced else SpawnOutcome.CREATED
            return _created(session, prepared, created.state, outcome)
        holder = run(
            connection, key_stmt.holder(model), {"key": prepared.key, "params": row["params"]}
        ).first()
        if holder is None:
            continue  # it has just left; or its row is not ours to see yet
        if holder.expired:
            execute(session, key_stmt.release_expired(model, holder.id), model=model)
            continue
        if (found := _settle(session, prepared, holder)) is not None:
            return found
        replaced = prepared.options.on_duplicate is OnDuplicate.REPLACE
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
            # What holds for ever, or has succeeded, is not freed by its end.
            execute(session, key_stmt.release_held(prepared.model, holder.id), model=prepared.model)
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
    values = {**stmt.starts(None, _NO_DELAY), **prepared.row, "id": holder.id}
    names = own_attributes(prepared.model)
    own = {attribute: prepared.own[key] for attribute, key in names.items() if key in prepared.own}
    statement = key_stmt.update_waiting(prepared.model, values, own)
    updated = execute(session, statement, model=prepared.model).first()
    if updated is None:
        return None  # it was started, or left, meanwhile
    _record(prepared, SpawnOutcome.UPDATED, holder)
    return _existing(session, prepared, holder, updated.state, params_match=True)


def _created(session: Session, prepared: Prepared, state: str, outcome: SpawnOutcome) -> SpawnResult[Any]:
    row, model = prepared.row, prepared.model
    telemetry.record(model.__queue__, row["name"], outcome, row["id"])
    return new_result(prepared, state, Attach(session))


def new_result(prepared: Prepared, state: str, attach: Attach) -> SpawnResult[Any]:
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
        Attach(session),
    )


def _record(prepared: Prepared, outcome: SpawnOutcome, holder: Any) -> None:
    telemetry.record(
        prepared.model.__queue__, prepared.row["name"], outcome, holder.id, params_match=holder.params_match
    )


class Attach:
    """Makes objects of `session` for tasks, without a statement: their columns load when they are first read.

    It keeps them, as a session doesn't keep what nobody else refers to.
    """

    __slots__ = ("objects", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.objects: dict[UUID, DurableTask] = {}

    def __call__(self, model: Model, task_id: UUID) -> DurableTask:
        key = class_mapper(model).identity_key_from_primary_key(
            (task_id,)
        )  # configured, if nobody did before
        present: DurableTask | None = self.session.identity_map.get(key)
        if present is None:
            present = manager_of_class(model).new_instance()
            present.id = task_id
            make_transient_to_detached(present)
            self.session.add(present)
        self.objects[task_id] = present
        return present


@lru_cache(64)
def _retry_text(retry: RetryPolicy) -> str:
    return dumps(policy.retry_to_json(retry))


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
