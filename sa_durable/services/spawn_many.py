"""Spawn many tasks in a few statements, each with the result that a single spawn would have.

Locks are taken in one order: queue by queue, keys in their own order. So two batches with the same keys in
opposite orders don't deadlock. See docs/decisions/0012 for what happens when holders of keys have to be
changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from .. import telemetry
from ..errors import RetryTransaction
from ..handlers import Call
from ..models import in_order
from ..statements import arrays
from ..statements import keys as key_stmt
from ..values import OnDuplicate, SpawnKeywords
from .cancellation import Busy, wait_until_unlocked
from .execute import execute
from .insert_many import ROWS_PER_STATEMENT, insert_unless_held, statement_chunks
from .prepare import Model, Parent, PreparedSpawn, prepare_all
from .spawn import MAX_ROUNDS, check_same_task, duplicate_result, insert_or_get
from .spawn_results import SpawnResults, TaskAttacher

R = TypeVar("R")


def spawn_many(
    session: Session, calls: Iterable[Call[Any, R]], keywords: SpawnKeywords, parent: Parent | None = None
) -> SpawnResults[R]:
    """Spawn all of `calls` or none of them: see Durable.spawn_many.

    Calls without a key are sent by the thousands as they come, then forgotten: a generator may yield
    millions. Calls with a key are kept until the last one has come, then taken in the order of their keys.
    """
    spawns = prepare_all(calls, keywords, parent)
    first = list(
        islice(spawns, ROWS_PER_STATEMENT)
    )  # refuses bad options of most batches before anything is sent
    results: SpawnResults[R] = SpawnResults(TaskAttacher(session))
    unkeyed: defaultdict[Model, list[PreparedSpawn]] = defaultdict(list)
    keyed: defaultdict[Model, list[PreparedSpawn]] = defaultdict(list)
    with session.begin_nested():  # flushes, too
        for prepared in chain(first, spawns):
            model = prepared.template.model
            if prepared.key is not None:
                keyed[model].append(prepared)
                continue
            unkeyed[model].append(prepared)
            if len(unkeyed[model]) == ROWS_PER_STATEMENT:
                _spawn_queue(session, unkeyed.pop(model), results)
        holds_keys = False
        for model in in_order({*unkeyed, *keyed}):
            keyed[model].sort(key=_KEY)
            _spawn_queue(session, unkeyed[model] + keyed[model], results, holds_keys=holds_keys)
            holds_keys = holds_keys or bool(keyed[model])
    return results


# A sort is stable: calls with equal keys stay in their order.
_KEY: Callable[[PreparedSpawn], Any] = attrgetter("key")


class _KeyOrderViolation(Exception):
    """These keys sort before keys that the batch has taken already: spawn them singly, each in its place."""

    def __init__(self, keys: set[str]) -> None:
        super().__init__()
        self.keys = keys


def _spawn_queue(
    session: Session,
    spawns: Sequence[PreparedSpawn],
    results: SpawnResults[Any],
    *,
    holds_keys: bool = False,
) -> None:
    """Spawn calls of one queue, sorted by key.

    Free keys are taken by one or two statements, in their order. Some held keys need a change: their holder
    is updated or replaced, has expired, or has just left. If the batch has taken a later key by then, the
    change would break the order: everything is undone, and the next round spawns these keys singly, each in
    its place.

    The order of keys says nothing about the order of holders: a cascade locks a family of tasks from root to
    leaf. So the batch never waits for a holder while it has locks. It undoes everything, waits until the
    holder is free, and starts again. It can't undo keys of another queue (`holds_keys`): then it raises
    RetryTransaction.
    """
    queue = spawns[0].model.__queue__
    singly: set[str] = set()
    for _ in range(MAX_ROUNDS):
        savepoint = session.begin_nested() if spawns[-1].key is not None else nullcontext()
        try:
            with telemetry.defer_recording(unless=(_KeyOrderViolation, Busy)), savepoint:
                created = _spawn_in_order(session, spawns, singly, results)
        except _KeyOrderViolation as violation:
            singly |= violation.keys
        except Busy as busy:
            if holds_keys:
                raise RetryTransaction(
                    f"could not change tasks of queue {busy.model.__queue__!r}: another transaction is "
                    "changing them, and this batch has taken keys of another queue. Nothing was written. "
                    "Roll back and retry the transaction."
                ) from busy
            wait_until_unlocked(session, busy)
        else:
            names = [prepared.template.name for prepared in created]
            ids = (results.task_id(prepared.position) for prepared in created)
            telemetry.record_created(queue, names, ids)
            return
    raise RetryTransaction(
        f"could not acquire the keys of a batch in queue {queue!r}: concurrent transactions took and "
        f"released them {MAX_ROUNDS} times. Nothing was written. Roll back and retry the transaction."
    )


def _spawn_in_order(
    session: Session, spawns: Sequence[PreparedSpawn], singly: set[str], results: SpawnResults[Any]
) -> list[PreparedSpawn]:
    """Spawn calls of one queue once: by arrays, and keys of `singly` by a statement each.

    Returns the calls that were inserted by arrays. Raises _KeyOrderViolation or Busy: the caller undoes
    everything.
    """
    created: list[PreparedSpawn] = []
    rest: list[PreparedSpawn] = []
    groups = groupby(spawns, key=lambda prepared: prepared.key in singly) if singly else [(False, spawns)]
    for alone, group in groups:
        if alone:
            for prepared in group:
                results.put(prepared.position, insert_or_get(session, prepared, wait=False))
            continue
        first, repeated = _split_repeated(list(group))
        rest += repeated
        for chunk in statement_chunks(first):
            inserted, held = insert_unless_held(session, chunk, results)
            created += inserted
            rest += held
    if rest:
        rest.sort(key=lambda prepared: (prepared.key or "", prepared.position))
        taken = {prepared.key for prepared in created if prepared.key} | singly
        _resolve_duplicates(session, rest, taken, results)
    return created


def _split_repeated(spawns: list[PreparedSpawn]) -> tuple[list[PreparedSpawn], list[PreparedSpawn]]:
    """Split calls, sorted by key, into the first of each key and those that repeat a key.

    Calls without a key are among the first.
    """
    keys = [prepared.key for prepared in spawns if prepared.key is not None]
    if len(set(keys)) == len(keys):
        return spawns, []
    first: list[PreparedSpawn] = []
    repeated: list[PreparedSpawn] = []
    previous = None
    for prepared in spawns:
        (first if prepared.key is None or prepared.key != previous else repeated).append(prepared)
        previous = prepared.key
    return first, repeated


def _resolve_duplicates(
    session: Session, spawns: Sequence[PreparedSpawn], taken: set[str], results: SpawnResults[Any]
) -> None:
    """Finish calls that were not inserted: those that return the holder by one select, the rest singly.

    Raises _KeyOrderViolation, before anything is written, if one of the rest has a key that sorts before a
    `taken` one.
    """
    holders: dict[int, Any] = {}
    returning = [prepared for prepared in spawns if prepared.options.on_duplicate is OnDuplicate.RETURN]
    for chunk in statement_chunks(returning):
        parameters = {
            "keys": arrays.texts(prepared.key for prepared in chunk),
            "params": arrays.texts(prepared.params for prepared in chunk),
        }
        model = chunk[0].model
        for row in execute(session, key_stmt.holders(model), parameters, model=model):
            if not row.expired:
                holders[chunk[row.position - 1].position] = row
    changing = {prepared.key or "" for prepared in spawns if prepared.position not in holders}
    if taken and any(key < max(taken) for key in changing - taken):
        raise _KeyOrderViolation(changing - taken)
    if any(prepared.options.on_duplicate is OnDuplicate.REPLACE for prepared in spawns):
        holders.clear()  # replacing cancels descendants, which may hold other keys of this batch
    for prepared in spawns:
        holder = holders.get(prepared.position)
        if holder is None or prepared.key in changing:
            result = insert_or_get(session, prepared, wait=False)
        else:
            check_same_task(prepared, holder)
            result = duplicate_result(session, prepared, holder)
        results.put(prepared.position, result)
