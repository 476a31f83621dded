"""What a key does: whom it blocks, for how long, and which strings can be one."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from sa_durable import Durable, InvalidKey, TaskState, once_key
from tests.services import state_changes
from tests.services.state_changes import LIVES, live
from tests.shop import BillingTask, MailTask, charge, refund, send_mail

pytestmark = pytest.mark.service

# A4, A9: is the key held, by the life of its holder (tests/services/state_changes.py) and its hold?
# "ttl": held without a key_ttl and until it has passed.
HELD = """
                     active  queued  succeeded  forever
    pending          held    held    held       held
    running          held    free    held       held
    sleeping         held    free    held       held
    woken            held    free    held       held
    retried          held    free    held       held
    retried later    held    free    held       held
    swept            held    free    held       held
    released         held    free    held       held
    completed        free    free    ttl        ttl
    failed           free    free    free       ttl
    cancelled        free    free    free       ttl
    cancelled unseen free    free    free       ttl
"""
TTL = {
    "without a ttl": None,
    "before its ttl": timedelta(hours=1),
    "after its ttl": timedelta(microseconds=1),
}


def cases() -> list[Any]:
    holds, *rows = [line.strip().rsplit(None, 4) for line in HELD.strip().splitlines()]
    table = {life: dict(zip(holds, cells, strict=True)) for life, *cells in rows}
    assert table.keys() == LIVES.keys()
    return [
        pytest.param(life, hold, ttl, cell == "held" or (cell == "ttl" and ttl != "after its ttl"))
        for life, row in table.items()
        for hold, cell in row.items()
        for ttl in TTL
        if TTL[ttl] is None or hold in ("succeeded", "forever")
    ]


@pytest.mark.parametrize(("life", "hold", "ttl", "held"), cases())
def test_a_key_is_held_as_the_table_says(scratch, life, hold, ttl, held):  # A4, A9
    durable = Durable(scratch)
    options = {"idempotency_key": "k", "hold": hold, "key_ttl": TTL[ttl]}
    first = durable.spawn(charge.call(1), **options)
    live(scratch, first.task_id, life)

    found = durable.find_by_key(BillingTask, "k")
    with scratch.begin_nested() as savepoint:
        [batched] = durable.spawn_many([charge.call(1)], **options)
        savepoint.rollback()
    second = durable.spawn(charge.call(1), **options)

    assert second.created is not held
    assert batched.created is not held
    if held:
        assert second.task_id == batched.task_id == first.task_id
        scratch.refresh(found)
        assert found.id == first.task_id
        assert (second.run_id, second.attempt, second.state) == (found.run_id, found.attempt, found.state)
    else:
        assert second.task_id != first.task_id
        assert found is None
        assert durable.find_by_key(BillingTask, "k").id == second.task_id
        keys = scratch.scalars(select(BillingTask.idempotency_key))
        assert list(keys) == ["k", "k"]  # the freed one keeps its key as history


@pytest.mark.parametrize("hold", ["active", "queued", "succeeded", "forever"])
@pytest.mark.parametrize("life", LIVES)
def test_a_released_key_is_free_whatever_its_holder_does(scratch, life, hold):
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k", hold=hold)
    assert durable.release_key(BillingTask, "k")
    live(scratch, first.task_id, life)
    assert durable.spawn(charge.call(1), idempotency_key="k").created


def test_a_sleeper_that_never_started_holds_a_queued_key(
    scratch,
):  # A4: sleeping, as a delayed spawn leaves it
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k", hold="queued", delay=timedelta(hours=1))
    assert first.state is TaskState.SLEEPING
    second = durable.spawn(charge.call(1), idempotency_key="k", hold="queued")
    assert (second.created, second.task_id, second.state) == (False, first.task_id, TaskState.SLEEPING)


def test_the_hold_is_the_holders_not_the_newcomers(scratch):
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k", hold="forever")
    live(scratch, first.task_id, "failed")
    assert durable.spawn(charge.call(1), idempotency_key="k", hold="queued").task_id == first.task_id


def test_succeeded_key_is_free_exactly_when_its_ttl_has_passed(scratch):  # A9
    durable = Durable(scratch)
    options: dict[str, Any] = {"idempotency_key": "k", "hold": "succeeded", "key_ttl": timedelta(hours=1)}
    first = durable.spawn(charge.call(1), **options)
    live(scratch, first.task_id, "completed")
    assert durable.spawn(charge.call(1), **options).task_id == first.task_id
    first.task.key_expires_at = func.statement_timestamp()
    scratch.flush()
    second = durable.spawn(charge.call(1), **options)
    assert second.created
    live(scratch, second.task_id, "failed")
    assert durable.spawn(charge.call(1), **options).created


def test_a_key_counts_its_ttl_from_the_spawn_by_the_databases_clock(scratch):
    spawned = Durable(scratch).spawn(
        charge.call(1), idempotency_key="k", hold="forever", key_ttl=timedelta(days=30)
    )
    task = spawned.task
    assert task.key_expires_at - task.created_at == timedelta(days=30)


def test_a_key_belongs_to_its_queue(scratch):
    durable = Durable(scratch)
    assert durable.spawn(charge.call(1), idempotency_key="k").created
    assert durable.spawn(send_mail.call("ada"), idempotency_key="k").created
    assert durable.find_by_key(MailTask, "k").name == "send"


def test_a_deleted_holder_frees_its_key(scratch):
    durable = Durable(scratch)
    scratch.delete(durable.spawn(charge.call(1), idempotency_key="k", hold="forever").task)
    assert durable.spawn(charge.call(1), idempotency_key="k").created


# A14
KEYS = [
    "x",
    "x" * 255,
    "🦊" * 255,
    " ",
    " leading and trailing ",
    'it\'s "quoted"',
    "back\\slash",
    "100%s %(key)s :key $1 {key}",
    "line\nfeed\ttab\x01",
    "naïve",
    "nai\u0308ve",
    "K",
    "k",
    "{a,b}",
    "NULL",
    "x~",
]


def test_keys_are_stored_as_given_and_none_is_taken_for_another(scratch):  # A14
    durable = Durable(scratch)
    singly = [durable.spawn(charge.call(1), idempotency_key=key) for key in KEYS]
    assert all(spawned.created for spawned in singly)
    assert [spawned.task.idempotency_key for spawned in singly] == KEYS
    again = [durable.spawn(charge.call(1), idempotency_key=key) for key in KEYS]
    batched = durable.spawn_many([charge.call(1).using(idempotency_key=key) for key in KEYS])
    ids = [spawned.task_id for spawned in singly]
    assert [spawned.task_id for spawned in again] == [spawned.task_id for spawned in batched] == ids
    assert [durable.find_by_key(BillingTask, key).id for key in KEYS] == ids


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "~mine", "\ud800", 7, b"k"], ids=repr)
def test_what_can_be_no_key_is_refused(scratch, key):  # A14
    with pytest.raises(InvalidKey):
        Durable(scratch).spawn(charge.call(1), idempotency_key=key)
    with pytest.raises(InvalidKey):
        Durable(scratch).spawn_many([charge.call(1).using(idempotency_key=key)])
    assert not scratch.scalar(select(func.count()).select_from(BillingTask))


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "\ud800"], ids=repr)
@pytest.mark.parametrize("ask", ["find_by_key", "release_key"])
def test_invalid_key_has_no_holder(scratch, ask, key):
    with suppress(InvalidKey):
        assert not getattr(Durable(scratch), ask)(BillingTask, key)
    assert Durable(scratch).spawn(charge.call(1)).created


def test_release_frees_a_key_once_and_leaves_its_holder_alone(scratch):
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k", hold="forever")
    task = first.task
    assert durable.release_key(BillingTask, "k") is True
    assert durable.release_key(BillingTask, "k") is False
    assert durable.find_by_key(BillingTask, "k") is None
    assert (task.state, task.idempotency_key, task.key_hold) == ("pending", "k", None)
    assert durable.release_key(BillingTask, "never heard of") is False


def test_key_past_its_ttl_has_no_holder(scratch):
    durable = Durable(scratch)
    options: dict[str, Any] = {"hold": "forever", "key_ttl": timedelta(microseconds=1)}
    first = durable.spawn(charge.call(1), idempotency_key="k", **options)
    live(scratch, first.task_id, "completed")
    assert durable.find_by_key(BillingTask, "k") is None
    assert durable.release_key(BillingTask, "k") is False


def test_derived_key_can_be_found_and_released(scratch):
    durable = Durable(scratch)
    first = durable.spawn(charge.call(order_id=7), only_once=True)
    key = once_key("charge", {"order_id": 7})
    assert durable.find_by_key(BillingTask, key).id == first.task_id
    assert durable.release_key(BillingTask, key)
    assert durable.spawn(charge.call(order_id=7), only_once=True).created


def test_queued_key_passes_on_through_starts_sleeps_and_retries(scratch):  # A5
    durable = Durable(scratch)

    def spawn():
        return durable.spawn(charge.call(1), idempotency_key="k", hold="queued")

    first = spawn()
    state_changes.claim(scratch, first.task_id)
    second = spawn()
    assert second.created
    for step in (
        state_changes.sleep,
        state_changes.wake,
        state_changes.claim,
        state_changes.retry_later,
        state_changes.wake,
        state_changes.claim,
    ):
        step(scratch, first.task_id)
        assert spawn().task_id == second.task_id
    state_changes.claim(scratch, second.task_id)
    third = spawn()
    assert third.created
    for step in (
        state_changes.retry_at_once,
        state_changes.claim,
        state_changes.lose_lease,
        state_changes.claim,
        state_changes.release,
    ):
        step(scratch, first.task_id)
        step(scratch, second.task_id)
        assert spawn().task_id == third.task_id
    state_changes.cancel(scratch, first.task_id)
    state_changes.claim(scratch, second.task_id)
    state_changes.complete(scratch, second.task_id)
    assert spawn().task_id == third.task_id


def test_key_is_the_same_for_every_handler_of_the_queue(scratch):
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k")
    live(scratch, first.task_id, "completed")
    assert durable.spawn(refund.call(1), idempotency_key="k").created  # free: any task may take it


def test_a_key_changes_hands_any_number_of_times_in_a_transaction(scratch):
    durable = Durable(scratch)
    for _ in range(25):  # more holders than the loop has rounds
        spawned = durable.spawn(charge.call(1), idempotency_key="k")
        assert spawned.created
        live(scratch, spawned.task_id, "cancelled unseen")
