"""What the second one to spawn a key gets, and that its transaction goes on."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import DuplicateTask, Durable, IdempotencyConflict, TaskState
from sa_durable.handlers import call_by_name
from sa_durable.telemetry import on_spawn, remove_hook, spawn_counts
from tests.services import state_changes
from tests.services.state_changes import LIVES, live
from tests.shop import BillingTask, Order, charge, refund, send_mail

pytestmark = pytest.mark.service


def row(session: Session, spawned) -> dict:
    """Everything that the database has about a task."""
    table = spawned.model.__table__
    return dict(session.execute(select(table).where(table.c.id == spawned.task_id)).mappings().one())


# A3: how a second spawn of key "k" can come out
OUTCOMES = {
    "returned": ({}, None),
    "returned with other params": ({"order_id": 2}, None),
    "raised": ({"on_duplicate": "raise"}, DuplicateTask),
    "strict": ({"strict": True, "order_id": 2}, IdempotencyConflict),
    "other task": ({"handler": refund}, IdempotencyConflict),
    "updated": ({"on_duplicate": "update", "order_id": 2}, None),
    "replaced": ({"on_duplicate": "replace", "order_id": 2}, None),
    "created": ({"idempotency_key": "another"}, None),
}


@pytest.mark.parametrize("how", ["spawn", "spawn_many"])
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_no_duplicate_aborts_the_callers_transaction(engine, outcome, how):  # A3
    options, error = dict(OUTCOMES[outcome][0]), OUTCOMES[outcome][1]
    with Session(engine) as session, session.begin():
        Durable(session).spawn(charge.call(1), idempotency_key="k")
    with Session(engine) as session, session.begin():
        session.add(Order(id=1))
        call = options.pop("handler", charge).call(options.pop("order_id", 1))
        options = {"idempotency_key": "k", **options}
        durable = Durable(session)

        def spawn():
            return durable.spawn(call, **options) if how == "spawn" else durable.spawn_many([call], **options)

        if error:
            with pytest.raises(error):
                spawn()
        else:
            spawn()
        session.add(Order(id=2))
        durable.spawn(charge.call(3))
    with Session(engine) as session:
        assert session.scalars(select(Order.id).order_by(Order.id)).all() == [1, 2]
        expected = {"replaced": 3, "created": 3}.get(outcome, 2)
        assert session.scalar(select(func.count()).select_from(BillingTask)) == expected


def test_another_task_never_gets_the_holder_of_a_key(scratch):  # A8
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    before = row(scratch, holder)
    for options in ({}, {"on_duplicate": "raise"}, {"on_duplicate": "update"}, {"on_duplicate": "replace"}):
        with pytest.raises(IdempotencyConflict, match="'charge', not 'refund'") as caught:
            durable.spawn(refund.call(1), idempotency_key="k", **options)
        assert (caught.value.key, caught.value.task_id) == ("k", holder.task_id)
    assert row(scratch, holder) == before


def test_other_params_are_flagged_and_with_strict_refused(scratch):  # A8
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    other = durable.spawn(charge.call(2), idempotency_key="k")
    assert (other.task_id, other.created, other.params_match) == (holder.task_id, False, False)
    with pytest.raises(IdempotencyConflict, match="other params"):
        durable.spawn(charge.call(2), idempotency_key="k", strict=True)
    same = durable.spawn(charge.call(1), idempotency_key="k", strict=True)
    assert (same.task_id, same.params_match) == (holder.task_id, True)
    assert holder.task.params == {"order_id": 1}


SAME = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    ({"a": 1}, {"a": 1.0}, True),
    ({"a": 10**16}, {"a": 1e16}, True),
    ({"a": [1, 2]}, {"a": [2, 1]}, False),
    ({"a": None}, {}, False),
    ({"a": 1}, {"a": "1"}, False),
    ({"a": 1}, {"a": True}, False),
    ({"a": 2**53}, {"a": 2**53 + 1}, False),
    ({}, {}, True),
]


@pytest.mark.parametrize(("stored", "given", "same"), SAME, ids=repr)
def test_params_are_compared_as_jsonb(scratch, stored, given, same):  # A8
    durable = Durable(scratch)
    durable.spawn(BillingTask, "by name", stored, idempotency_key="k")
    assert durable.spawn(BillingTask, "by name", given, idempotency_key="k").params_match is same
    [batched] = durable.spawn_many([call_by_name(BillingTask, "by name", given, None)], idempotency_key="k")
    assert batched.params_match is same


def test_a_duplicate_gets_the_ids_state_and_attempt_of_the_real_row(scratch):  # P4
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k")
    live(scratch, first.task_id, "retried later")
    second = durable.spawn(charge.call(1), idempotency_key="k")
    task = scratch.get(BillingTask, first.task_id, populate_existing=True)
    assert (second.task_id, second.run_id, second.attempt, second.state) == (
        task.id,
        task.run_id,
        2,
        TaskState.SLEEPING,
    )
    assert second.run_id != first.run_id
    assert second.task is task


def test_raise_carries_the_holder_and_touches_nothing(scratch):
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    state_changes.claim(scratch, holder.task_id)
    before = row(scratch, holder)
    with pytest.raises(DuplicateTask, match="is held by task") as caught:
        durable.spawn(charge.call(2), idempotency_key="k", on_duplicate="raise")
    error = caught.value
    assert (error.queue, error.key, error.task_id, error.state) == (
        "billing",
        "k",
        holder.task_id,
        "running",
    )
    assert row(scratch, holder) == before


def test_an_option_that_needs_no_duplicate_changes_nothing_for_the_first(scratch):
    durable = Durable(scratch)
    for on_duplicate in ("raise", "update", "replace"):
        assert durable.spawn(charge.call(1), idempotency_key=on_duplicate, on_duplicate=on_duplicate).created


def test_update_gives_a_waiting_task_new_params_and_keeps_its_id(scratch):  # A10
    durable = Durable(scratch)
    scratch.add_all([Order(id=1), Order(id=2)])
    ahead = datetime(2200, 1, 1, tzinfo=UTC)
    first = durable.spawn(charge.call(1), idempotency_key="k", columns={"order_id": 1})
    second = durable.spawn(
        charge.call(2),
        idempotency_key="k",
        on_duplicate="update",
        run_at=ahead,
        priority=7,
        headers={"trace": "x"},
        columns={"order_id": 2},
    )
    assert (second.task_id, second.run_id, second.created) == (first.task_id, first.run_id, False)
    assert (second.state, second.params_match) == (TaskState.SLEEPING, True)
    task = first.task
    assert (task.params, task.available_at, task.priority) == ({"order_id": 2}, ahead, 7)
    assert (task.headers, task.order.id, task.state) == ({"trace": "x"}, 2, "sleeping")


def test_update_debounces_and_one_without_delay_makes_the_task_due(scratch):  # A10
    durable = Durable(scratch)

    def trigger(n, **options):
        return durable.spawn(
            charge.call(n), idempotency_key="k", hold="queued", on_duplicate="update", **options
        )

    first = trigger(1, delay=timedelta(minutes=5))
    task = first.task
    times = []
    for n in (2, 3):
        assert trigger(n, delay=timedelta(minutes=5)).task_id == first.task_id
        times.append(task.available_at)
    assert times == sorted(times)
    assert times[0] < times[1]
    assert trigger(4).state is TaskState.PENDING
    assert (task.state, task.params) == ("pending", {"order_id": 4})
    state_changes.claim(scratch, first.task_id)
    assert trigger(5).created  # it started: a queued key is free


@pytest.mark.parametrize("life", [life for life in LIVES if life != "pending"])
@pytest.mark.parametrize("hold", ["active", "forever"])
def test_update_leaves_a_task_alone_that_has_started_or_ended(scratch, life, hold):  # A10
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k", hold=hold)
    live(scratch, holder.task_id, life)
    before = row(scratch, holder)
    second = durable.spawn(charge.call(2), idempotency_key="k", on_duplicate="update", priority=9)
    assert row(scratch, holder) == before
    assert second.created is (hold == "active" and before["finished_at"] is not None)
    if not second.created:
        assert (second.task_id, second.params_match) == (holder.task_id, False)


@pytest.mark.parametrize("hold", ["active", "queued", "succeeded", "forever"])
@pytest.mark.parametrize("life", LIVES)
def test_replace_cancels_the_holder_of_any_hold_and_spawns(scratch, life, hold):  # A10
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k", hold=hold)
    live(scratch, holder.task_id, life)
    before = durable.result(holder).state
    held = durable.find_by_key(BillingTask, "k") is not None
    new = durable.spawn(charge.call(2), idempotency_key="k", hold=hold, on_duplicate="replace")
    assert new.created
    assert (new.task_id, new.task.params) == (durable.find_by_key(BillingTask, "k").id, {"order_id": 2})
    after = durable.result(holder).state
    assert after is (TaskState.CANCELLED if held and not before.terminal else before)


def test_replace_cancels_the_holders_descendants(scratch):  # A10
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    child = durable.spawn(send_mail.call("ada"))
    child.task.parent_queue, child.task.parent_id = "billing", holder.task_id
    grandchild = durable.spawn(charge.call(2))
    grandchild.task.parent_queue, grandchild.task.parent_id = "mail", child.task_id
    assert durable.spawn(charge.call(3), idempotency_key="k", on_duplicate="replace").created
    assert {durable.result(s).state for s in (holder, child, grandchild)} == {TaskState.CANCELLED}


def test_replace_keeps_what_the_cancelled_run_was(scratch):  # A10
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k")
    state_changes.claim(scratch, holder.task_id)
    durable.spawn(charge.call(2), idempotency_key="k", on_duplicate="replace")
    task = scratch.get(BillingTask, holder.task_id, populate_existing=True)
    assert [(run.attempt, run.state) for run in task.runs] == [(1, "cancelled")]
    assert task.token == 2  # what its worker still writes is rejected


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({}, "returned"),
        ({"on_duplicate": "update"}, "updated"),
        ({"on_duplicate": "replace"}, "replaced"),
        ({"on_duplicate": "raise"}, "raised"),
        ({"strict": True}, "conflict"),
    ],
)
def test_duplicates_are_counted_logged_without_secrets_and_shown_to_hooks(scratch, caplog, options, outcome):
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(111222), idempotency_key="secret-key")
    before = spawn_counts().get(("billing", "charge", outcome), 0)
    seen = []
    hook = on_spawn(seen.append)
    try:
        with caplog.at_level(logging.INFO, "sa_durable"):
            durable.spawn(charge.call(333444), idempotency_key="secret-key", **options)
    except (DuplicateTask, IdempotencyConflict):
        pass
    finally:
        remove_hook(hook)
    assert spawn_counts()["billing", "charge", outcome] == before + 1
    [one] = seen
    assert (one.queue, one.task, one.outcome) == ("billing", "charge", outcome)
    assert (one.task_id == holder.task_id) is (outcome != "replaced")
    [line] = [record.getMessage() for record in caplog.records if record.name == "sa_durable"]
    assert outcome in line
    assert not any(secret in line for secret in ("secret-key", "111222", "333444"))


def test_a_hook_that_fails_is_logged_and_the_spawn_goes_on(scratch, caplog):
    @on_spawn
    def broken(_):
        raise RuntimeError("broken hook")

    try:
        assert Durable(scratch).spawn(charge.call(1)).created
    finally:
        remove_hook(broken)
    assert "broken hook" in caplog.text
