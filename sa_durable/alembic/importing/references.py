"""Read the tables of durable (tensorzero) and absurd (earendil-works).

Each queue has five: `t_` (tasks), `r_` (runs), `c_` (checkpoints), `e_` (events) and `w_` (waits).

Tasks keep their ids, attempts, parents and checkpoints. A task that waited or slept is run again: its
finished steps are replayed, and it waits for the rest of the time. The old workers must be stopped first.
"""

from __future__ import annotations

# ruff: noqa: S608 - identifiers are quoted, texts go through literal()
from collections.abc import Collection
from enum import StrEnum

from ...models.names import Role, table_name
from ...values import Hold
from ..ddl import Targets, literal
from .values import PAGE, Import, Rows


class System(StrEnum):
    """The system that the tables belong to."""

    DURABLE = "durable"
    ABSURD = "absurd"


def read_queue(
    system: System,
    queue: str,
    schema: str,
    targets: Targets,
    ours: str,
    *,
    sleeps: Collection[str],
    key: str | None,
    terminal: bool,
    hold: Hold,
    batch_size: int,
) -> Import:
    """Return the import of a system's queue `queue` into the queue `ours`, whose task table is `targets`."""
    tasks, runs, checkpoints, events, waits = (_named(schema, f"{kind}_{queue}") for kind in "trcew")
    ours_in = targets.schema

    def beside(role: Role) -> str:
        return _named(ours_in, table_name(ours, role)) if ours_in else _quoted(table_name(ours, role))

    rows = Rows(
        f"{tasks} AS t LEFT JOIN {runs} AS r ON r.run_id = t.last_attempt_run",
        _columns(system, ours),
        "t.task_id",
        key and f"t.{_quoted(key)}",
        "true" if terminal else "t.state IN ('pending', 'running', 'sleeping')",
    )
    following = (
        _history(runs, beside(Role.RUNS)),
        _checkpoints(system, checkpoints, runs, beside(Role.CHECKPOINTS), sleeps),
        _waits(waits, runs, beside(Role.WAITS), ours),
    )
    return Import(rows, hold, batch_size, following, (_events(system, events, beside(Role.EVENTS)),))


def _columns(system: System, ours: str) -> dict[str, str]:
    started = "coalesce(t.first_started_at, r.started_at)"
    # Sleeping until a time. A task that waits for an event is run once more, so that it registers its wait
    # here.
    asleep = "(t.state = 'sleeping' AND r.wake_event IS NULL AND isfinite(r.available_at))"
    begins = f"CASE WHEN {asleep} OR t.state = 'pending' THEN r.available_at END"
    active = "t.state IN ('pending', 'running', 'sleeping')"
    limit = "make_interval(secs => CAST(t.cancellation->>{} AS double precision))"
    max_delay, max_duration = limit.format("'max_delay'"), limit.format("'max_duration'")
    columns = {
        "id": "t.task_id",
        "name": "t.task_name",
        "params": "t.params",
        "headers": "t.headers",
        "state": f"CASE WHEN NOT {active} THEN t.state"
        f" WHEN {begins} > statement_timestamp() THEN 'sleeping' ELSE 'pending' END",
        "created_at": "t.enqueue_at",
        "available_at": f"CASE WHEN {active} THEN coalesce({begins}, t.enqueue_at) END",
        "first_started_at": started,
        "finished_at": f"CASE WHEN {active} THEN NULL"
        " ELSE coalesce(t.cancelled_at, r.completed_at, r.failed_at, t.enqueue_at) END",
        "run_id": "coalesce(t.last_attempt_run, gen_random_uuid())",
        "attempt": "greatest(t.attempts, 1)",
        "max_attempts": "t.max_attempts",
        "retry": _RETRY,
        # Claims increment the token. A token above 0 makes the worker read the checkpoints of earlier runs.
        "token": f"CASE WHEN {started} IS NULL THEN 0 ELSE 1 END",
        "result": "CASE WHEN t.state = 'completed' THEN coalesce(t.completed_payload, 'null') END",
        "error": f"CASE WHEN t.state = 'failed' THEN {_error('r')} END",
        "max_duration": max_duration,
        "cancel_at": f"CASE WHEN {active} THEN CASE WHEN {started} IS NULL THEN t.enqueue_at + {max_delay}"
        f" ELSE {started} + {max_duration} END END",
    }
    if system is System.DURABLE:
        columns |= {
            "parent_id": "t.parent_task_id",
            "parent_queue": f"CASE WHEN t.parent_task_id IS NOT NULL THEN {literal(ours)} END",
        }
    return columns


# Without a strategy, and with "none", both systems retry at once.
_RETRY = (
    "CASE t.retry_strategy->>'kind' WHEN 'fixed' THEN jsonb_build_object('kind', 'fixed', 'delay_seconds',"
    " t.retry_strategy->'base_seconds', 'jitter', 0) WHEN 'exponential' THEN jsonb_build_object('kind',"
    " 'exponential',"
    " 'base_seconds', t.retry_strategy->'base_seconds', 'factor', coalesce(t.retry_strategy->'factor', '2'),"
    " 'cap_seconds', coalesce(t.retry_strategy->'max_seconds', '86400'), 'jitter', 0)"
    ' ELSE \'{"kind": "fixed", "delay_seconds": 0, "jitter": 0}\'::jsonb END'
)


def _error(run: str) -> str:
    reason = f"{run}.failure_reason"
    return (
        f"CASE WHEN {reason} IS NOT NULL THEN jsonb_build_object("
        f"'type', coalesce({reason}->>'name', 'Error'), 'message', coalesce({reason}->>'message', ''),"
        f" 'traceback', coalesce({reason}->>'traceback', {reason}->>'backtrace')) END"
    )


def _history(runs: str, into: str) -> str:
    """Copy attempts that failed or were cancelled."""
    return (
        f"INSERT INTO {into} (id, task_id, attempt, state, worker, started_at,"
        " lease_expires_at, ended_at, error)"
        f" SELECT r.run_id, r.task_id, r.attempt, r.state, r.claimed_by, r.started_at, r.claim_expires_at,"
        f" coalesce(r.failed_at, r.completed_at, r.created_at), {_error('r')}"
        f" FROM {runs} AS r WHERE r.state IN ('failed', 'cancelled') AND r.task_id IN ({PAGE})"
        " ON CONFLICT DO NOTHING RETURNING 1"
    )


def _checkpoints(system: System, checkpoints: str, runs: str, into: str, sleeps: Collection[str]) -> str:
    """Copy checkpoints under the names that our contexts use.

    In durable, a name ends in a hash of the step's params. The hash is removed, and equal names are numbered
    in the order in which they were saved, because a replay asks for them in this order.
    """
    name = "c.checkpoint_name"
    if system is System.DURABLE:
        name = f"regexp_replace({name}, '-[0-9a-f]{{8,64}}(#[0-9]+)?$', '')"
    base = f"regexp_replace({name}, '#[0-9]+$', '')"
    asleep = ", ".join(map(literal, sleeps)) or "NULL"
    ours = (
        f"CASE WHEN {base} IN ({asleep}) THEN '$sleep'"
        f" ELSE regexp_replace({base}, '^[$]await_?[Ee]vent:', '$await:') END"
    )
    payload = "s.state->'inner'" if system is System.DURABLE else "s.state"
    value = (
        f"CASE WHEN starts_with(s.base, '$await:') THEN jsonb_build_object('payload', {payload}) ELSE"
        " s.state END"
    )
    return (
        f"INSERT INTO {into} (task_id, name, value, attempt, created_at) SELECT s.task_id,"
        f" s.base || CASE WHEN s.nth > 1 THEN '#' || s.nth ELSE '' END, coalesce({value}, 'null'),"
        " s.attempt, s.updated_at FROM (SELECT n.*, row_number()"
        " OVER (PARTITION BY n.task_id, n.base ORDER BY n.updated_at, n.checkpoint_name) AS nth"
        f" FROM (SELECT c.task_id, c.checkpoint_name, {ours} AS base, c.state, c.updated_at,"
        f" coalesce(r.attempt, 1) AS attempt FROM {checkpoints} AS c"
        f" LEFT JOIN {runs} AS r ON r.run_id = c.owner_run_id WHERE c.task_id IN ({PAGE})) AS n"
        ") AS s RETURNING 1"
    )


def _waits(waits: str, runs: str, into: str, ours: str) -> str:
    """Copy waits, with the time at which each times out."""
    return (
        f"INSERT INTO {into} (task_id, step, event_name, event_queue, timeout_at, created_at)"
        f" SELECT w.task_id, '$await:' || w.event_name, w.event_name, {literal(ours)},"
        f" CASE WHEN isfinite(w.timeout_at) THEN w.timeout_at END, w.created_at FROM {waits} AS w"
        f" JOIN {runs} AS r ON r.run_id = w.run_id"
        f" WHERE r.state = 'sleeping' AND NOT starts_with(w.event_name, '$') AND w.task_id IN ({PAGE})"
        " ON CONFLICT DO NOTHING RETURNING 1"
    )


def _events(system: System, events: str, into: str) -> str:
    """Copy emitted events as settled ones. Skips rows without a payload: placeholders of waiters."""
    payload = "e.payload->'inner'" if system is System.DURABLE else "e.payload"
    return (
        f"INSERT INTO {into} (id, name, payload, emitted_at, settled_at, dropped)"
        f" SELECT md5({literal(events)} || ':' || e.event_name)::uuid, e.event_name,"
        f" coalesce({payload}, 'null'),"
        f" e.emitted_at, statement_timestamp(), false FROM {events} AS e"
        " WHERE e.payload IS NOT NULL AND NOT starts_with(e.event_name, '$') ON CONFLICT (id) DO NOTHING"
    )


def _named(schema: str, name: str) -> str:
    return f"{_quoted(schema)}.{_quoted(name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
