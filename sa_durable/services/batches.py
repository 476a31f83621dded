"""Spawning many tasks in a few statements, each as a single spawn would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from .. import telemetry
from ..errors import RetryTransaction
from ..handlers import Call
from ..ids import uuid7_digits
from ..statements import arrays
from ..statements import keys as key_stmt
from ..statements import tasks as stmt
from ..values import OnDuplicate, SpawnKeywords
from .database import ensure_schema, execute
from .notifications import can_notify
from .preparing import Model, Parent, Prepared, own_attributes, prepare
from .spawned import Attach, SpawnResults
from .tasks import ROUNDS, check_same_task, insert_or_get, returned

R = TypeVar("R")
T = TypeVar("T")
CHUNK = 1000  # rows a statement


def spawn_many(
    session: Session, calls: Iterable[Call[Any, R]], keywords: SpawnKeywords, parent: Parent | None = None
) -> SpawnResults[R]:
    """Spawn each call as Durable.spawn would; all or none of them. Results in the order of the calls.

    Calls without a key are sent by the thousand as they come, and forgotten: a generator of a million is no million
    calls in memory. Those with a key are kept until all have come: two batches with the same keys in opposite orders would
    deadlock, so a batch takes them in their order.
    """
    spawns = (prepare(call, keywords, parent, position) for position, call in enumerate(calls))
    first = list(islice(spawns, CHUNK))  # before anything is sent: most batches are no longer
    results: SpawnResults[R] = SpawnResults(Attach(session))
    plain: defaultdict[Model, list[Prepared]] = defaultdict(list)
    keyed: defaultdict[Model, list[Prepared]] = defaultdict(list)
    with session.begin_nested():  # flushes, too; a conflict in the middle undoes the batch and nothing else
        for prepared in chain(first, spawns):
            model = prepared.model
            if prepared.key is not None:
                keyed[model].append(prepared)
                continue
            plain[model].append(prepared)
            if len(plain[model]) == CHUNK:
                _spawn_queue(session, plain.pop(model), results)
        for model in sorted({*plain, *keyed}, key=lambda model: model.__queue__):
            keyed[model].sort(key=_by_key)
            _spawn_queue(session, plain[model] + keyed[model], results)
    return results


def _by_key(prepared: Prepared) -> tuple[str, int]:
    return prepared.key or "", prepared.position


def _spawn_queue(session: Session, spawns: Sequence[Prepared], results: SpawnResults[Any]) -> None:
    """Spawn these, which are of one queue and sorted by key.

    Free keys are taken in a statement or two, in their order. Where a held one has to be changed after all (its holder is
    updated, replaced, over for long, or has just left) and later ones are ours by then, that would be against the
    order: all is undone, and those keys are spawned singly, each in its place.
    """
    singly: set[str] = set()
    for _ in range(ROUNDS):
        with session.begin_nested() if spawns[-1].key is not None else nullcontext() as attempt:
            created, late = _spawn_in_order(session, spawns, singly, results)
            if late and attempt is not None:
                attempt.rollback()
        if not late:
            telemetry.record_created(spawns[0].model.__queue__, created)
            return
        singly |= late
    raise RetryTransaction(
        f"keys of a batch changed hands {ROUNDS} times while it was spawned in queue {spawns[0].model.__queue__!r}: "
        "nothing was written; roll back and run the transaction again"
    )


def _spawn_in_order(
    session: Session, spawns: Sequence[Prepared], singly: set[str], results: SpawnResults[Any]
) -> tuple[list[tuple[str, str]], set[str]]:
    """Returns the names and ids of the new tasks; or the keys that are to be spawned `singly`, and then all is to be
    undone."""
    created: list[tuple[str, str]] = []
    rest: list[Prepared] = []
    taken: set[str] = set()  # keys that are ours
    for alone, group in groupby(spawns, key=lambda prepared: prepared.key in singly):
        if alone:
            for prepared in group:
                results.put(prepared.position, insert_or_get(session, prepared))
                taken.add(prepared.key or "")
            continue
        first: list[Prepared] = []
        before = None
        for prepared in group:
            key = prepared.key
            (first if key is None or key != before else rest).append(
                prepared
            )  # or it repeats one of this batch
            before = key
        for chunk in _chunks(first, CHUNK):
            held = _insert(session, chunk, results, created)
            taken |= {prepared.key for prepared in chunk if prepared.key} - {
                prepared.key or "" for prepared in held
            }
            rest += held
    rest.sort(key=_by_key)
    return created, _duplicates(session, rest, taken, results)


def _insert(
    session: Session,
    spawns: list[Prepared],
    results: SpawnResults[Any],
    created: list[tuple[str, str]],
) -> list[Prepared]:
    """Insert those whose key is free, in order, and add their names and ids to `created`. Returns the others."""
    model = spawns[0].model
    ensure_schema(session, model)
    digits = iter(uuid7_digits(2 * len(spawns)))
    # In the order of the calls: tasks that are due at once start in the order of their ids.
    new = {p.position: (next(digits), next(digits)) for p in sorted(spawns, key=attrgetter("position"))}
    states: dict[str, str] = {}  # of those that were inserted
    for own, group in groupby(spawns, key=_own):
        for row in _insert_rows(session, model, own, list(group), new):
            states[row[0].hex] = row[1]
    held: list[Prepared] = []
    for prepared in spawns:
        task_id, run_id = new[prepared.position]
        if (state := states.get(task_id)) is None:
            held.append(prepared)
        else:
            created.append((prepared.kind.name, task_id))
            results.put_new(prepared.position, model, task_id + run_id, state)
    return held


def _own(prepared: Prepared) -> tuple[str, ...]:
    return tuple(sorted(prepared.own)) if prepared.own else ()


def _insert_rows(
    session: Session,
    model: Model,
    own: tuple[str, ...],
    spawns: list[Prepared],
    new: Mapping[int, tuple[str, str]],
) -> Iterable[Any]:
    """Their ids are those of `new`. Returns id and state of what was inserted."""
    table = stmt.table_of(model)
    notify = can_notify(session.connection(bind_arguments={"mapper": model}))
    if own or any(table.c[name].default is not None for name in own_attributes(model).values()):
        # The application's columns have types and defaults of their own, which SQLAlchemy's executemany knows.
        every_option = stmt.insert_task(
            model, keyed=True, scheduled=True, limited=True, own=own, notify=notify
        )
        rows = [_row(prepared, *new[prepared.position]) for prepared in spawns]
        return execute(session, every_option, rows, model=model)
    columns = _columns(spawns)
    columns["id"], columns["run_id"] = zip(*[new[prepared.position] for prepared in spawns], strict=True)
    varying, parameters = stmt.batch(columns)
    scheduled = any(columns[stmt.RUN_AT]) or any(columns[stmt.DELAY])
    statement = stmt.insert_tasks(model, varying, scheduled=scheduled, notify=notify)
    return execute(session, statement, parameters, model=model)


def _row(prepared: Prepared, task_id: str, run_id: str) -> dict[str, Any]:
    ids = {"id": UUID(task_id), "run_id": UUID(run_id)}
    return {**stmt.NO_OPTION, **prepared.row(), **ids, **prepared.own}


def _columns(spawns: list[Prepared]) -> dict[str, Sequence[Any]]:
    """Their parameters of statements.tasks.insert_tasks, but for the ids: of each, or one value that all have."""
    shapes = [(prepared.kind, prepared.key is not None) for prepared in spawns]
    rows = {
        (kind, keyed): {**stmt.NO_OPTION, **kind.row, **(kind.hold if keyed else {})}
        for kind, keyed in set(shapes)
    }
    every = [rows[shape] for shape in shapes] if len(rows) > 1 else list(rows.values())
    columns: dict[str, Sequence[Any]] = {name: [row[name] for row in every] for name in every[0]}
    columns["params"] = [prepared.params for prepared in spawns]
    columns["headers"] = [prepared.headers for prepared in spawns]
    columns["idempotency_key"] = [prepared.key for prepared in spawns]
    columns["parent_queue"], columns["parent_id"] = zip(spawns[0].parent or (None, None), strict=True)
    return columns


def _duplicates(
    session: Session, spawns: Sequence[Prepared], taken: set[str], results: SpawnResults[Any]
) -> set[str]:
    """What spawns come to that were not inserted: one select for those that just want the holder, the rest singly; or,
    of the latter, the keys that come before one that is `taken`, and then nothing has happened."""
    found: dict[int, Any] = {}
    asking = [prepared for prepared in spawns if prepared.options.on_duplicate is OnDuplicate.RETURN]
    for chunk in _chunks(asking, CHUNK):
        parameters = {
            "keys": arrays.texts(prepared.key for prepared in chunk),
            "params": arrays.texts(prepared.params for prepared in chunk),
        }
        model = chunk[0].model
        for row in execute(session, key_stmt.holders(model), parameters, model=model):
            if not row.expired:
                found[chunk[row.position - 1].position] = row
    changing = {prepared.key or "" for prepared in spawns if prepared.position not in found}
    if late := {key for key in changing - taken if taken and key < max(taken)}:
        return late
    if any(prepared.options.on_duplicate is OnDuplicate.REPLACE for prepared in spawns):
        found.clear()  # who is replaced takes descendants along, which may hold other keys
    for prepared in spawns:
        position, holder = prepared.position, found.get(prepared.position)
        if holder is None or prepared.key in changing:  # as it is by then
            results.put(position, insert_or_get(session, prepared))
        else:
            check_same_task(prepared, holder)
            results.put(position, returned(session, prepared, holder))
    return set()


def _chunks(values: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
