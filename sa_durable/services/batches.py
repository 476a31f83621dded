"""Spawning many tasks in a few statements, each as a single spawn would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby, islice
from typing import Any, TypeVar

from sqlalchemy import Result
from sqlalchemy.orm import Session

from .. import telemetry
from ..handlers import Call
from ..statements import arrays
from ..statements import keys as key_stmt
from ..statements import tasks as stmt
from ..values import OnDuplicate, SpawnKeywords, SpawnResult
from .database import ensure_schema, execute
from .tasks import (
    Attach,
    Model,
    Prepared,
    check_same_task,
    insert_or_get,
    new_result,
    own_attributes,
    prepare,
    returned,
)

R = TypeVar("R")
T = TypeVar("T")
CHUNK = 1000  # rows a statement


def spawn_many(
    session: Session, calls: Iterable[Call[Any, R]], keywords: SpawnKeywords
) -> list[SpawnResult[R]]:
    """Spawn each call as Durable.spawn would, in order; all or none of them. Results in input order."""
    spawns = [prepare(call, keywords) for call in calls]
    results: list[SpawnResult[R] | None] = [None] * len(spawns)
    models = sorted({p.model for p in spawns}, key=lambda model: model.__queue__)
    for model in models:
        ensure_schema(session, model)
    with session.begin_nested():  # flushes, too; a conflict in the middle undoes the batch and nothing else
        for model in models:
            positions = [i for i, p in enumerate(spawns) if p.model is model]
            # In the order of keys: two batches with the same keys in opposite orders would deadlock.
            positions.sort(key=lambda i: spawns[i].key or "")
            for position, result in _spawn_queue(session, spawns, positions):
                results[position] = result
    return [result for result in results if result is not None]


def _spawn_queue(
    session: Session, spawns: Sequence[Prepared], positions: list[int]
) -> Iterator[tuple[int, SpawnResult[Any]]]:
    """Spawn those at `positions`, which are of one queue and sorted by key."""
    first: list[int] = []
    later: list[int] = []  # repeats a key of this batch
    for before, position in zip([None, *positions], positions, strict=False):
        repeats = (
            before is not None
            and spawns[position].key is not None
            and spawns[before].key == spawns[position].key
        )
        (later if repeats else first).append(position)
    states: dict[Any, str] = {}
    for chunk in _chunks(first, CHUNK):
        states |= _insert(session, [spawns[i] for i in chunk])
    created: list[Prepared] = []
    attach = Attach(session)
    rest: list[int] = later
    for position in first:
        prepared = spawns[position]
        if (state := states.get(prepared.row["id"])) is None:
            rest.append(position)
        else:
            created.append(prepared)
            yield position, new_result(prepared, state, attach)
    telemetry.record_created([(p.model.__queue__, p.row["name"], p.row["id"]) for p in created])
    rest.sort(key=lambda i: (spawns[i].key or "", i))
    yield from _duplicates(session, spawns, rest)


def _insert(session: Session, spawns: list[Prepared]) -> dict[Any, str]:
    """Insert those whose key is free, in order. Returns the state of each new task by its id."""
    states: dict[Any, str] = {}
    for own, group in groupby(spawns, key=lambda p: tuple(sorted(p.own))):
        rows = [{**_NO_OPTION, **p.row, **p.own} for p in group]
        states |= {row.id: row.state for row in _insert_rows(session, spawns[0].model, own, rows)}
    return states


def _insert_rows(
    session: Session, model: Model, own: tuple[str, ...], rows: list[dict[str, Any]]
) -> Result[Any]:
    table = stmt.table_of(model)
    if own or any(table.c[name].default is not None for name in own_attributes(model).values()):
        # The application's columns have types and defaults of their own, which SQLAlchemy's executemany knows.
        return execute(
            session, stmt.insert_task(model, keyed=True, scheduled=True, own=own), rows, model=model
        )
    varying, parameters = stmt.batch(rows)
    return execute(session, stmt.insert_tasks(model, varying), parameters, model=model)


_NO_OPTION = {
    **stmt.starts(None, timedelta(0)),
    **dict.fromkeys(("idempotency_key", "key_hold", stmt.KEY_TTL)),
}


def _duplicates(
    session: Session, spawns: Sequence[Prepared], positions: list[int]
) -> Iterator[tuple[int, SpawnResult[Any]]]:
    """What spawns come to that were not inserted: one select for those that just want the holder, the rest singly."""
    found: dict[int, Any] = {}
    asking = [i for i in positions if spawns[i].options.on_duplicate is OnDuplicate.RETURN]
    for chunk in _chunks(asking, CHUNK):
        parameters = {
            "keys": arrays.texts(spawns[i].key for i in chunk),
            "params": arrays.texts(spawns[i].row["params"] for i in chunk),
        }
        model = spawns[chunk[0]].model
        for row in execute(session, key_stmt.holders(model), parameters, model=model):
            found[chunk[row.position - 1]] = row
    for position in positions:
        prepared, holder = spawns[position], found.get(position)
        if holder is None or holder.expired:
            yield position, insert_or_get(session, prepared)
        else:
            check_same_task(prepared, holder)
            yield position, returned(session, prepared, holder)


def _chunks(values: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
