"""Spawning many tasks in a few statements, each as a single spawn would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from .. import telemetry
from ..errors import RetryTransaction
from ..handlers import Call
from ..models import in_order
from ..statements import arrays
from ..statements import keys as key_stmt
from ..statements import spawn as stmt
from ..statements.tables import table_of
from ..values import OnDuplicate, SpawnKeywords
from .cancellation import Busy, until_free
from .execute import ensure_schema, execute
from .notifications import can_notify
from .prepare import Model, Parent, PreparedSpawn, own_attributes, prepare_all
from .spawn import MAX_ROUNDS, check_same_task, duplicate_result, insert_or_get
from .spawn_results import SpawnResults, TaskAttacher

R = TypeVar("R")
CHUNK = 2500  # rows a statement: 6% less processor time than 1000, and more saves nothing
_LETTERS = 64 * 1024**2  # of their params: PostgreSQL takes no text of a gigabyte
_WRITTEN = 37  # characters of an id and a comma


def spawn_many(
    session: Session, calls: Iterable[Call[Any, R]], keywords: SpawnKeywords, parent: Parent | None = None
) -> SpawnResults[R]:
    """Spawn each call as Durable.spawn would; all or none of them. Results in the order of the calls.

    Calls without a key are sent by the thousands as they come, and forgotten: a generator of a million is no million
    calls in memory. Those with a key are kept until all have come: two batches with the same keys in opposite orders would
    deadlock, so a batch takes them in their order.
    """
    spawns = prepare_all(calls, keywords, parent)
    first = list(islice(spawns, CHUNK))  # before anything is sent: most batches are no longer
    results: SpawnResults[R] = SpawnResults(TaskAttacher(session))
    plain: defaultdict[Model, list[PreparedSpawn]] = defaultdict(list)
    keyed: defaultdict[Model, list[PreparedSpawn]] = defaultdict(list)
    with session.begin_nested():  # flushes, too; a conflict in the middle undoes the batch and nothing else
        for prepared in chain(first, spawns):
            model = prepared.template.model
            if prepared.key is not None:
                keyed[model].append(prepared)
                continue
            plain[model].append(prepared)
            if len(plain[model]) == CHUNK:
                _spawn_queue(session, plain.pop(model), results)
        has_taken = False
        for model in in_order({*plain, *keyed}):
            keyed[model].sort(key=_KEY)
            _spawn_queue(session, plain[model] + keyed[model], results, has_taken=has_taken)
            has_taken = has_taken or bool(keyed[model])
    return results


# A sort keeps those with the same one in the order of their calls.
_KEY: Callable[[PreparedSpawn], Any] = attrgetter("key")


class _KeyOrderViolation(Exception):
    """These keys come before some that have been taken: they are to be spawned singly."""

    def __init__(self, keys: set[str]) -> None:
        super().__init__()
        self.keys = keys


def _spawn_queue(
    session: Session, spawns: Sequence[PreparedSpawn], results: SpawnResults[Any], *, has_taken: bool = False
) -> None:
    """Spawn these, which are of one queue and sorted by key.

    Free keys are taken in a statement or two, in their order. Where a held one has to be changed after all (its holder is
    updated, replaced, over for long, or has just left) and later ones are ours by then, that would be against the
    order: all is undone, and those keys are spawned singly, each in its place.

    The order of keys is none of holders: a cascade takes a family from root to leaf. So no holder is waited for while
    something is ours: all is undone, and begun again when that holder is free; unless this batch `has_taken` keys of
    another queue.
    """
    singly: set[str] = set()
    for _ in range(MAX_ROUNDS):
        savepoint = session.begin_nested() if spawns[-1].key is not None else nullcontext()
        try:
            with telemetry.defer_recording(unless=(_KeyOrderViolation, Busy)), savepoint:
                created = _spawn_in_order(session, spawns, singly, results)
        except _KeyOrderViolation as late:
            singly |= late.keys
        except Busy as busy:
            if has_taken:
                raise RetryTransaction(
                    f"tasks of queue {busy.model.__queue__!r} are being changed by another transaction, and this batch has "
                    "taken keys of another queue: nothing was written; roll back and run the transaction again"
                ) from busy
            until_free(session, busy)
        else:
            names = [prepared.template.name for prepared in created]
            ids = (results.task_id(prepared.position) for prepared in created)
            telemetry.record_created(spawns[0].model.__queue__, names, ids)
            return
    raise RetryTransaction(
        f"keys of a batch changed hands {MAX_ROUNDS} times while it was spawned in queue {spawns[0].model.__queue__!r}: "
        "nothing was written; roll back and run the transaction again"
    )


def _spawn_in_order(
    session: Session, spawns: Sequence[PreparedSpawn], singly: set[str], results: SpawnResults[Any]
) -> list[PreparedSpawn]:
    """Returns those of the new tasks that were inserted together. Raises _Late, with keys that are to be spawned `singly`,
    or Busy: then all is to be undone."""
    created: list[PreparedSpawn] = []
    rest: list[PreparedSpawn] = []
    for alone, group in (
        groupby(spawns, key=lambda prepared: prepared.key in singly) if singly else [(False, spawns)]
    ):
        if alone:
            for prepared in group:
                results.put(prepared.position, insert_or_get(session, prepared, wait=False))
            continue
        first, repeating = _firsts(list(group))
        rest += repeating
        for chunk in _chunks(first):
            new, held = _insert(session, chunk, results)
            created += new
            rest += held
    if rest:
        rest.sort(key=lambda prepared: (prepared.key or "", prepared.position))
        taken = {prepared.key for prepared in created if prepared.key} | singly  # those are ours
        _duplicates(session, rest, taken, results)
    return created


def _firsts(spawns: list[PreparedSpawn]) -> tuple[list[PreparedSpawn], list[PreparedSpawn]]:
    """Those that are the first with their key, or have none; and those that repeat one. They are sorted by key."""
    keys = [prepared.key for prepared in spawns if prepared.key is not None]
    if len(set(keys)) == len(keys):
        return spawns, []
    first: list[PreparedSpawn] = []
    repeating: list[PreparedSpawn] = []
    before = None
    for prepared in spawns:
        (first if prepared.key is None or prepared.key != before else repeating).append(prepared)
        before = prepared.key
    return first, repeating


def _insert(
    session: Session, spawns: list[PreparedSpawn], results: SpawnResults[Any]
) -> tuple[list[PreparedSpawn], list[PreparedSpawn]]:
    """Insert those whose key is free, in order. Returns them, and the others."""
    model = spawns[0].model
    ensure_schema(session, model)
    new: list[PreparedSpawn] = []
    if not any(prepared.own for prepared in spawns):
        new = _insert_alike(session, model, spawns, results)
    else:
        for own, group in groupby(spawns, key=lambda prepared: tuple(sorted(prepared.own))):
            insert = _insert_by_row if own else _insert_alike
            new += insert(session, model, list(group), results)
    if len(new) == len(spawns):
        return new, []
    positions = {prepared.position for prepared in new}
    return new, [prepared for prepared in spawns if prepared.position not in positions]


def _insert_alike(
    session: Session, model: Model, spawns: list[PreparedSpawn], results: SpawnResults[Any]
) -> list[PreparedSpawn]:
    """Insert those whose key is free, none of which has columns of the application's. Returns them."""
    table = table_of(model)
    if any(table.c[name].default is not None for name in own_attributes(model).values()):
        return _insert_by_row(session, model, spawns, results)
    notify = can_notify(session.connection(bind_arguments={"mapper": model}))
    positions = [prepared.position for prepared in spawns]
    digits = results.digits(positions)
    ids = [both[:32] for both in digits]
    columns = _columns(spawns)
    columns |= {"id": ids, "run_id": [both[32:] for both in digits]}
    if any(columns[stmt.RUN_AT]) or any(columns[stmt.DELAY]):
        varying, parameters = stmt.batch(columns)
        rows = execute(session, stmt.insert_tasks(model, varying, notify=notify), parameters, model=model)
        return _put_rows(rows, model, dict(zip(ids, spawns, strict=True)), results)
    del columns[stmt.RUN_AT], columns[stmt.DELAY]
    varying, parameters = stmt.batch(columns)
    insert = stmt.insert_ready_tasks(model, varying, notify=notify)
    inserted: str = execute(session, insert, parameters, model=model).scalar() or ""
    if len(inserted) < len(spawns) * _WRITTEN - 1:
        by_id = dict(zip(ids, spawns, strict=True))
        spawns = [by_id[id_] for id_ in inserted.replace("-", "").split(",") if id_]
        positions = [prepared.position for prepared in spawns]
    results.add_created(model, positions)
    return spawns


def _insert_by_row(
    session: Session, model: Model, spawns: list[PreparedSpawn], results: SpawnResults[Any]
) -> list[PreparedSpawn]:
    """As `_insert_alike`, for those with the same columns of the application's: these have types and defaults of their
    own, which SQLAlchemy's executemany knows."""
    insert = stmt.insert_task(
        model,
        keyed=True,
        scheduled=True,
        limited=True,
        own=tuple(sorted(spawns[0].own)),
        notify=can_notify(session.connection(bind_arguments={"mapper": model})),
    )
    digits = results.digits([prepared.position for prepared in spawns])
    ids = [both[:32] for both in digits]
    rows = [
        {**stmt.NO_OPTION, **prepared.row(), "id": UUID(both[:32]), "run_id": UUID(both[32:]), **prepared.own}
        for prepared, both in zip(spawns, digits, strict=True)
    ]
    inserted = execute(session, insert, rows, model=model)
    return _put_rows(inserted, model, dict(zip(ids, spawns, strict=True)), results)


def _put_rows(
    rows: Iterable[Any], model: Model, spawns: Mapping[str, PreparedSpawn], results: SpawnResults[Any]
) -> list[PreparedSpawn]:
    new = []
    for row in rows:
        prepared = spawns[row[0].hex]
        results.add_created(model, (prepared.position,), row[1])
        new.append(prepared)
    return new


def _columns(spawns: list[PreparedSpawn]) -> dict[str, Sequence[Any]]:
    """Their parameters of statements.spawn.insert_tasks, but for the ids: of each, or one value that all have."""
    kinds, keys, params, headers, *_ = zip(*spawns, strict=True)
    shapes = [(kind, key is not None) for kind, key in zip(kinds, keys, strict=True)]
    rows = {
        (kind, keyed): {**stmt.NO_OPTION, **kind.row, **(kind.hold if keyed else {})}
        for kind, keyed in set(shapes)
    }
    every = [rows[shape] for shape in shapes] if len(rows) > 1 else list(rows.values())
    columns: dict[str, Sequence[Any]] = {name: [row[name] for row in every] for name in every[0]}
    columns |= {"params": params, "headers": headers, "idempotency_key": keys}
    columns["parent_queue"], columns["parent_id"] = zip(spawns[0].parent or (None, None), strict=True)
    return columns


def _duplicates(
    session: Session, spawns: Sequence[PreparedSpawn], taken: set[str], results: SpawnResults[Any]
) -> None:
    """What spawns come to that were not inserted: one select for those that just want the holder, the rest singly.
    Raises _Late, before anything happens, if one of the latter comes before a key that is `taken`."""
    found: dict[int, Any] = {}
    asking = [prepared for prepared in spawns if prepared.options.on_duplicate is OnDuplicate.RETURN]
    for chunk in _chunks(asking):
        parameters = {
            "keys": arrays.texts(prepared.key for prepared in chunk),
            "params": arrays.texts(prepared.params for prepared in chunk),
        }
        model = chunk[0].model
        for row in execute(session, key_stmt.holders(model), parameters, model=model):
            if not row.expired:
                found[chunk[row.position - 1].position] = row
    changing = {prepared.key or "" for prepared in spawns if prepared.position not in found}
    if taken and any(key < max(taken) for key in changing - taken):
        raise _KeyOrderViolation(changing - taken)
    if any(prepared.options.on_duplicate is OnDuplicate.REPLACE for prepared in spawns):
        found.clear()  # who is replaced takes descendants along, which may hold other keys
    for prepared in spawns:
        position, holder = prepared.position, found.get(prepared.position)
        if holder is None or prepared.key in changing:  # as it is by then
            results.put(position, insert_or_get(session, prepared, wait=False))
        else:
            check_same_task(prepared, holder)
            results.put(position, duplicate_result(session, prepared, holder))


def _chunks(spawns: Sequence[PreparedSpawn]) -> Iterator[list[PreparedSpawn]]:
    """What goes into a statement each."""
    rest = iter(spawns)
    while chunk := list(islice(rest, CHUNK)):
        yield from _in_bounds(chunk)


def _in_bounds(chunk: list[PreparedSpawn]) -> Iterator[list[PreparedSpawn]]:
    if sum(len(prepared.params) for prepared in chunk) <= _LETTERS or len(chunk) == 1:
        yield chunk
    else:
        yield from _in_bounds(chunk[: len(chunk) // 2])
        yield from _in_bounds(chunk[len(chunk) // 2 :])
