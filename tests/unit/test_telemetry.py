"""The outcome of every spawn is counted, logged and passed to hooks; none of that can break a spawn."""

from __future__ import annotations

import doctest
import logging
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy.orm import Session

from sa_durable import DuplicateTask, Durable, IdempotencyConflict, telemetry
from sa_durable.telemetry import (
    Spawned,
    SpawnOutcome,
    on_spawn,
    record,
    record_created,
    remove_hook,
    spawn_counts,
)
from tests.shop import MailTask, charge, refund

ID = UUID(int=7)


@pytest.fixture
def queue():
    """A queue's name that no other test counts."""
    return f"q{uuid4().hex[:8]}"


@pytest.fixture
def seen():
    spawned: list[Spawned] = []
    hook = on_spawn(spawned.append)
    yield spawned
    remove_hook(hook)


def _count(queue, task="charge"):
    return {outcome: n for (q, name, outcome), n in spawn_counts().items() if (q, name) == (queue, task)}


def test_spawns_are_counted_by_queue_task_and_outcome(queue):
    for outcome in (SpawnOutcome.CREATED, SpawnOutcome.RETURNED, SpawnOutcome.RETURNED):
        record(queue, "charge", outcome, ID)
    record(queue, "refund", SpawnOutcome.CREATED, ID)
    record_created(queue, ["charge", "charge"], [ID, uuid4()])
    assert _count(queue) == {"created": 3, "returned": 2}
    assert _count(queue, "refund") == {"created": 1}


def test_counts_are_a_copy(queue):
    counts = spawn_counts()
    record(queue, "charge", SpawnOutcome.CREATED, ID)
    assert (queue, "charge", "created") not in counts


def test_no_spawn_of_any_thread_is_lost(queue):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: record(queue, "charge", SpawnOutcome.CREATED, ID), range(2000)))
    assert _count(queue) == {"created": 2000}


@pytest.mark.parametrize("outcome", [outcome for outcome in SpawnOutcome if outcome != "created"])
def test_duplicate_is_logged(caplog, queue, outcome):
    caplog.set_level(logging.INFO, "sa_durable")
    record(queue, "charge", outcome, ID)
    assert [r.getMessage() for r in caplog.records] == [
        f"duplicate spawn of {queue}.charge {outcome}: task {ID} holds the key"
    ]


def test_new_task_is_not_logged(caplog, queue):
    caplog.set_level(logging.DEBUG, "sa_durable")
    record(queue, "charge", SpawnOutcome.CREATED, ID)
    record_created(queue, ["charge"], [ID])
    assert not caplog.records


def test_hook_sees_every_spawn(queue, seen):
    record(queue, "charge", SpawnOutcome.RETURNED, ID, params_match=False)
    record_created(queue, ["charge"], [ID])
    assert seen == [
        Spawned(queue, "charge", SpawnOutcome.RETURNED, ID, params_match=False),
        Spawned(queue, "charge", SpawnOutcome.CREATED, ID, params_match=True),
    ]


def test_removed_hook_sees_nothing(queue):
    seen: list[Spawned] = []
    hook = on_spawn(seen.append)
    remove_hook(hook)
    record(queue, "charge", SpawnOutcome.CREATED, ID)
    assert seen == []


def test_hook_is_still_the_function_that_was_decorated():
    @on_spawn
    def hook(spawned: Spawned) -> str:
        return spawned.task

    try:
        assert hook(Spawned("q", "charge", SpawnOutcome.CREATED, ID, params_match=True)) == "charge"
    finally:
        remove_hook(hook)


def test_hook_may_remove_itself(queue, seen):
    def once(spawned: Spawned) -> None:
        remove_hook(once)

    on_spawn(once)
    record(queue, "charge", SpawnOutcome.CREATED, ID)
    record(queue, "charge", SpawnOutcome.CREATED, ID)
    assert len(seen) == 2


def test_hook_that_raises_is_logged_and_goes_no_further(caplog, queue, seen):
    @on_spawn
    def broken(spawned: Spawned) -> None:
        raise RuntimeError("hook is broken")

    later: list[Spawned] = []
    on_spawn(later.append)
    try:
        record(queue, "charge", SpawnOutcome.CREATED, ID)
    finally:
        remove_hook(broken)
        remove_hook(later.append)
    assert len(seen) == len(later) == 1
    (logged,) = caplog.records
    assert "spawn hook" in logged.getMessage()
    assert "hook is broken" in caplog.text


def test_every_outcome_of_a_spawn_is_recorded(session: Session, seen):
    durable = Durable(session)
    first = durable.spawn(charge.call(order_id=7), idempotency_key="k")
    durable.spawn(charge.call(order_id=8), idempotency_key="k")
    durable.spawn(charge.call(order_id=8), idempotency_key="k", on_duplicate="update")
    with pytest.raises(DuplicateTask):
        durable.spawn(charge.call(order_id=8), idempotency_key="k", on_duplicate="raise")
    with pytest.raises(IdempotencyConflict):
        durable.spawn(refund.call(order_id=8), idempotency_key="k")
    new = durable.spawn(charge.call(order_id=9), idempotency_key="k", on_duplicate="replace")
    durable.spawn(MailTask, "unknown", {})
    assert [(s.task, s.outcome.value, s.task_id == first.task_id, s.params_match) for s in seen] == [
        ("charge", "created", True, True),
        ("charge", "returned", True, False),
        ("charge", "updated", True, False),
        ("charge", "raised", True, True),
        ("refund", "conflict", True, True),
        ("charge", "replaced", False, True),
        ("unknown", "created", False, True),
    ]
    assert seen[5].task_id == new.task_id


def test_rolled_back_spawn_was_counted_all_the_same(session: Session):
    before = _count("mail", "rolled-back").get("created", 0)
    Durable(session).spawn(MailTask, "rolled-back", {})
    session.rollback()
    assert _count("mail", "rolled-back") == {"created": before + 1}


def test_neither_key_nor_params_are_logged(session: Session, caplog):
    caplog.set_level(logging.DEBUG, "sa_durable")
    for _ in range(2):
        Durable(session).spawn(MailTask, "send", {"to": "ada@example.org"}, idempotency_key="secret-key")
    assert caplog.records
    assert "ada@" not in caplog.text
    assert "secret-key" not in caplog.text


def test_the_examples_of_the_hooks_run():
    assert doctest.testmod(telemetry).failed == 0
