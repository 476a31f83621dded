"""How a run ends: completed, failed with or without another attempt, or suspended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Interval,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    column,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import ReturningUpdate

from ..models.names import Role
from ..models.predicates import TERMINAL
from ..models.tables import TIME
from . import clock, notifications
from .cache import cached_statement
from .events import announce, is_announced
from .fencing import claim_is_held, lock_held
from .plan_shape import opaque_array
from .tables import Model, table_of


@cached_statement
def complete_many(model: Model, *, wait: bool = False) -> Select[Any]:
    """Store `results` (JSON texts) of the claims `ids` with `tokens`.

    Returns the ids that were still held, and whether the end of the task was announced. Passes over locked
    rows: a transaction that writes several tasks never waits for one while it holds another. With `wait`, for
    one claim, it waits.
    """
    table = table_of(model)
    ended = (
        func.unnest(
            opaque_array("ids", Uuid()), opaque_array("tokens", BigInteger()), opaque_array("results", Text())
        )
        .table_valued(
            column("id", Uuid()),
            column("token", BigInteger()),
            column("result", Text()),
        )
        .render_derived(name="ended")
    )
    row = lock_held(table, ended, wait=wait)
    locked = select(row.c.id, ended.c.result).select_from(ended.join(row, true())).cte("locked")
    done = (
        update(table)
        .where(table.c.id == locked.c.id)
        .values(
            state="completed",
            result=sql_cast(locked.c.result, JSONB),
            finished_at=clock.now(),
            lease_expires_at=None,
        )
        .returning(
            table.c.id, is_announced(model, table).label("announced"), notifications.notify_waiters(table)
        )
        .cte("done")
    )
    announced = announce(model, done).cte("told")
    return select(done.c.id, done.c.announced).add_cte(announced)


@cached_statement
def fail_many(model: Model, *, wait: bool = False) -> Select[Any]:
    """End the runs of claims `ids` with `tokens`, with `errors` (JSON texts), and write their history.

    `delays` decides what follows: seconds until the next attempt, whose id is in `next_runs`, or NULL: the
    task has failed. A task whose next attempt would be past its deadline is cancelled. Returns the ids that
    were still held, their new states, and whether their end was announced. Passes over locked rows, as
    complete_many.

    One statement: history and task change together, in one round trip.
    """
    table, runs = table_of(model), table_of(model, Role.RUNS)
    ended = (
        func.unnest(
            opaque_array("ids", Uuid()),
            opaque_array("tokens", BigInteger()),
            opaque_array("errors", Text()),
            opaque_array("delays", Float()),
            opaque_array("next_runs", Uuid()),
        )
        .table_valued(
            column("id", Uuid()),
            column("token", BigInteger()),
            column("error", Text()),
            column("delay", Float()),
            column("next_run", Uuid()),
        )
        .render_derived(name="ended")
    )
    names = ("run_id", "attempt", "claimed_by", "started_at", "lease_expires_at")
    row = lock_held(table, ended, *names, wait=wait)
    given = (ended.c.error, ended.c.delay, ended.c.next_run)
    locked = select(*row.c, *given).select_from(ended.join(row, true())).cte("locked")
    current = select(
        locked.c.run_id,
        locked.c.id,
        locked.c.attempt,
        literal("failed"),
        locked.c.claimed_by,
        locked.c.started_at,
        locked.c.lease_expires_at,
        clock.now(),
        sql_cast(locked.c.error, JSONB),
    )
    history = (
        insert(runs)
        .from_select(
            [
                "id",
                "task_id",
                "attempt",
                "state",
                "worker",
                "started_at",
                "lease_expires_at",
                "ended_at",
                "error",
            ],
            current,
        )
        .returning(runs.c.task_id)
        .cte("history")
    )
    overdue = func.coalesce(table.c.cancel_at <= clock.now(), literal_column("false"))
    final = or_(locked.c.delay.is_(None), overdue)

    def unless_final(value: Any, last: Any) -> ColumnElement[Any]:
        return case((final, last), else_=value)

    done = (
        update(table)
        .where(table.c.id == locked.c.id)
        .values(
            state=case(
                (locked.c.delay.is_(None), literal("failed")),
                (overdue, literal("cancelled")),
                (locked.c.delay <= 0, literal("pending")),
                else_=literal("sleeping"),
            ),
            available_at=unless_final(
                clock.now()
                + func.coalesce(locked.c.delay, 0.0) * literal_column("interval '1 second'", Interval()),
                table.c.available_at,
            ),
            attempt=unless_final(table.c.attempt + 1, table.c.attempt),
            run_id=unless_final(locked.c.next_run, table.c.run_id),
            token=table.c.token + 1,
            claimed_by=unless_final(null(), table.c.claimed_by),
            started_at=unless_final(null(), table.c.started_at),
            lease_expires_at=None,
            finished_at=unless_final(null(), clock.now()),
            error=unless_final(null(), sql_cast(locked.c.error, JSONB)),
        )
        .returning(
            table.c.id,
            table.c.state,
            and_(text(f"{table.name}.{TERMINAL}"), is_announced(model, table)).label("announced"),
            notifications.notify_waiters(table),
        )
        .cte("done")
    )
    announced = announce(model, done).cte("told")
    return select(done.c.id, done.c.state, done.c.announced).add_cte(history, announced)


@cached_statement
def sleep(model: Model) -> ReturningUpdate[Any]:
    """Put the task of claim `task_id` with `held_token` to sleep until `wake`, if that is in the future.

    The same run goes on then. Returns the task's id.
    """
    wake: ColumnElement[Any] = sql_cast(bindparam("wake", type_=TIME), TIME)
    return suspend(table_of(model), wake, wake > clock.now())


def suspend(table: Table, wake: ColumnElement[Any], *conditions: ColumnElement[bool]) -> ReturningUpdate[Any]:
    """Put the task of claim `task_id` with `held_token` to sleep until `wake`, and return its id."""
    return (
        update(table)
        .where(claim_is_held(table), *conditions)
        .values(
            state="sleeping",
            available_at=wake,
            token=table.c.token + 1,
            claimed_by=None,
            lease_expires_at=None,
        )
        .returning(table.c.id)
    )


def wake_time() -> ColumnElement[Any]:
    """Return, as a JSON string, when a sleep of `delay` that starts now ends, or `until` if given."""
    until: ColumnElement[Any] = sql_cast(bindparam("until", type_=TIME), TIME)
    delay: ColumnElement[Any] = sql_cast(bindparam("delay", type_=Interval()), Interval())
    return func.to_jsonb(func.coalesce(until, clock.after(delay)), type_=JSONB)
