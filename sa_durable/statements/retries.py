"""Retry tasks that failed or were cancelled: in place, or as new tasks."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Select,
    Text,
    Uuid,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate

from ..models.predicates import HELD, TAKES_KEY_BACK
from . import clock
from .cache import cached_statement
from .notifications import NotificationKind, notify_workers
from .spawn import parameter, unless_held
from .tables import Model, table_of


@cached_statement
def lock(model: Model) -> Select[Any]:
    """Lock task `task_id`, and return what a retry does to its key.

    `held`: the task holds its key now. `takes_key`: a retry must acquire the key again.
    """
    table = table_of(model)
    return (
        select(
            table.c.state,
            table.c.name,
            table.c.idempotency_key,
            table.c.key_hold,
            literal_column(f"({HELD})", Boolean()).label("held"),
            literal_column(f"({TAKES_KEY_BACK})", Boolean()).label("takes_key"),
        )
        .where(table.c.id == bindparam("task_id", type_=Uuid()))
        .with_for_update(key_share=True)
    )


def retry_in_place(
    model: Model, task_id: UUID, run_id: UUID, *, detached: bool, notify: bool
) -> ReturningUpdate[Any]:
    """Make a locked task pending, for another attempt with run `run_id`. Returns the attempt.

    With `detached`, frees the task's key. With `notify`, notifies idle workers. An attempt that never started
    isn't counted. Through the ORM, so that loaded objects see it.
    """
    attempt = case((model.started_at.is_not(None), model.attempt + 1), else_=model.attempt)
    new: dict[str, Any] = {
        "state": "pending",
        "available_at": clock.now(),
        "run_id": run_id,
        "attempt": attempt,
        "max_attempts": case(
            (model.max_attempts.is_not(None), func.greatest(model.max_attempts, attempt)), else_=null()
        ),
        "token": model.token + 1,
        "claimed_by": None,
        "started_at": None,
        "lease_expires_at": None,
        "finished_at": None,
        "error": None,
        # The deadline to end starts again. A task that never started gets it from its claim; its deadline to
        # start no longer applies.
        "cancel_at": case(
            (model.first_started_at.is_not(None), clock.after(model.max_duration)), else_=null()
        ),
    }
    if detached:
        new["key_hold"] = None
    return (
        update(model)
        .where(model.id == task_id, text("state IN ('failed', 'cancelled')"))
        .values(new)
        .returning(model.attempt, *_notification(model, notify=notify))
    )


@cached_statement
def retry_as_new(model: Model, own: tuple[str, ...], *, keyed: bool, notify: bool) -> ReturningInsert[Any]:
    """Insert task `id` with run `run_id`, as a copy of task `task_id`. Returns its id.

    Copies the application's own columns `own`. With `keyed`, copies the key, with hold `hold`; no row is
    inserted or returned if another task holds the key. With `notify`, notifies idle workers.
    """
    table = table_of(model)
    row = table.alias("original")
    same = ("name", "params", "headers", "priority", "max_attempts", "retry", "max_duration", *own)
    values: dict[str, Any] = {name: row.c[name] for name in same}
    values |= {"id": bindparam("id", type_=Uuid()), "run_id": bindparam("run_id", type_=Uuid())}
    values |= {"state": text("'pending'"), "available_at": clock.now(), "created_at": clock.now()}
    statement = insert(table)
    if keyed:
        expires = clock.after(row.c.key_expires_at - row.c.created_at)
        values |= {"idempotency_key": row.c.idempotency_key, "key_expires_at": expires}
        values["key_hold"] = parameter("hold", Text())
    source = select(*values.values()).where(row.c.id == bindparam("task_id", type_=Uuid()))
    statement = statement.from_select(list(values), source, include_defaults=False)
    if keyed:
        statement = unless_held(statement, table)
    return statement.returning(table.c.id, *_notification(model, notify=notify))


def _notification(model: Model, *, notify: bool) -> list[Any]:
    return [notify_workers(model, NotificationKind.READY)] if notify else []
