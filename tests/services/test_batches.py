"""Spawning many at once: each result is what a single spawn would have given, in input order."""

from __future__ import annotations

import random
import tracemalloc
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from sa_durable import DuplicateTask, Durable, IdempotencyConflict, InvalidOptions, TaskState
from sa_durable.services import insert_many
from tests.services.observed import statements
from tests.services.state_changes import LIVES, live
from tests.shop import BillingTask, Invoice, MailTask, Order, charge, refund, send_mail

pytestmark = pytest.mark.service


def keyed(n: int, key: str, **options):
    return charge.call(n).using(idempotency_key=key, **options)


def test_a_batch_gives_each_call_what_a_single_spawn_would_give(scratch):  # A7
    durable = Durable(scratch)
    passed = {"hold": "succeeded", "key_ttl": timedelta(microseconds=1)}
    active = durable.spawn(keyed(1, "active"))
    terminal = durable.spawn(keyed(1, "terminal"))
    expired = durable.spawn(keyed(1, "expired"), **passed)
    kept = durable.spawn(keyed(1, "kept"), hold="succeeded")
    for holder in (terminal, expired, kept):
        live(scratch, holder.task_id, "completed")
    calls = [
        keyed(1, "fresh"),
        charge.call(2),
        keyed(1, "terminal"),
        keyed(2, "active"),
        keyed(1, "kept"),
        keyed(1, "expired", **passed),
        keyed(3, "fresh"),
        charge.call(2),
        keyed(1, "active"),
    ]
    with scratch.begin_nested() as savepoint:
        singly = [durable.spawn(call) for call in calls]
        savepoint.rollback()
    batch = durable.spawn_many(calls)

    assert [s.created for s in batch] == [True, True, True, False, False, True, False, True, False]
    assert [(s.created, s.params_match, s.state, s.attempt) for s in batch] == [
        (s.created, s.params_match, s.state, s.attempt) for s in singly
    ]
    assert batch[3].task_id == batch[8].task_id == active.task_id
    assert batch[4].task_id == kept.task_id
    assert (batch[4].state, batch[6].params_match) == (TaskState.COMPLETED, False)
    assert batch[6].task_id == batch[0].task_id
    for call, spawned in zip(calls, batch, strict=True):
        assert (spawned.task.id, spawned.task.run_id) == (spawned.task_id, spawned.run_id)
        if spawned.created:
            assert spawned.task.params == call.params
    assert len({s.task_id for s in batch}) == 7


@pytest.mark.parametrize("on_duplicate", ["return", "update", "replace"])
def test_a_random_batch_equals_single_spawns_in_key_order(scratch, on_duplicate):  # A7
    durable, draw = Durable(scratch), random.Random(on_duplicate)
    keys = [f"k{i}" for i in range(12)]
    for key, life in zip(keys, LIVES, strict=True):
        hold = draw.choice(["active", "queued", "succeeded"])
        live(scratch, durable.spawn(keyed(0, key, hold=hold)).task_id, life)
    calls = [keyed(i, draw.choice([*keys, f"new {i % 5}"])) for i in range(40)]
    order = sorted(range(40), key=lambda i: (calls[i].options["idempotency_key"], i))
    with scratch.begin_nested() as savepoint:
        singly = {i: durable.spawn(calls[i], on_duplicate=on_duplicate) for i in order}
        savepoint.rollback()
    batch = durable.spawn_many(calls, on_duplicate=on_duplicate)
    for i, spawned in enumerate(batch):
        single = singly[i]
        assert (spawned.created, spawned.params_match, spawned.state) == (
            single.created,
            single.params_match,
            single.state,
        )
        first = {s.task_id: n for n, s in sorted(singly.items(), reverse=True)}  # who shares a task with whom
        same = {s.task_id: n for n, s in reversed(list(enumerate(batch)))}
        assert first[single.task_id] == same[spawned.task_id]


def test_results_come_in_the_order_of_the_calls_across_queues(scratch):
    durable = Durable(scratch)
    calls = [send_mail.call(f"{i}") if i % 3 else charge.call(i) for i in range(30)]
    batch = durable.spawn_many(calls)
    for call, spawned in zip(calls, batch, strict=True):
        assert spawned.model is call.model
        assert scratch.get(call.model, spawned.task_id).params == call.params


def test_every_option_of_a_call_reaches_its_row(scratch):
    durable = Durable(scratch)
    options = [
        {"priority": -4},
        {"delay": timedelta(hours=2)},
        {"headers": {"trace": "x"}},
        {"max_attempts": None},
        {"idempotency_key": "k", "hold": "forever", "key_ttl": timedelta(days=1)},
        {},
    ]
    batch = durable.spawn_many([charge.call(i).using(**o) for i, o in enumerate(options)])
    tasks = [s.task for s in batch]
    assert [t.priority for t in tasks] == [-4, 0, 0, 0, 0, 0]
    assert [t.state for t in tasks] == ["pending", "sleeping", *["pending"] * 4]
    assert tasks[1].available_at - tasks[1].created_at == timedelta(hours=2)
    assert [t.headers for t in tasks] == [None, None, {"trace": "x"}, None, None, None]
    assert [t.max_attempts for t in tasks] == [3, 3, 3, None, 3, 3]
    assert [t.idempotency_key for t in tasks] == [None, None, None, None, "k", None]
    assert tasks[4].key_expires_at - tasks[4].created_at == timedelta(days=1)
    assert [t.key_hold for t in tasks] == [None, None, None, None, "forever", None]
    assert [t.params for t in tasks] == [{"order_id": i} for i in range(6)]


def test_options_of_the_batch_win_over_those_of_a_call(scratch):
    [spawned] = Durable(scratch).spawn_many([charge.call(1).using(priority=1)], priority=2)
    assert spawned.task.priority == 2


def test_one_key_for_the_whole_batch_is_one_task(scratch):
    batch = Durable(scratch).spawn_many([charge.call(i) for i in range(5)], idempotency_key="k")
    assert [s.created for s in batch] == [True, False, False, False, False]
    assert [s.params_match for s in batch] == [True, False, False, False, False]
    assert len({s.task_id for s in batch}) == 1


def test_only_once_applies_to_each_call_of_a_batch(scratch):
    durable = Durable(scratch)
    durable.spawn(charge.call(2), only_once=True)
    batch = durable.spawn_many([charge.call(n) for n in (1, 2, 3, 1)], only_once=True)
    assert [s.created for s in batch] == [True, False, True, False]


def test_the_applications_columns_differ_from_call_to_call(scratch):
    scratch.add_all([Order(id=1), Order(id=2)])
    batch = Durable(scratch).spawn_many(
        [
            keyed(1, "a", columns={"order_id": 1}),
            keyed(2, "b"),
            keyed(3, "a", columns={"order_id": 2}),
            charge.call(4).using(columns={"order_id": 2}),
            keyed(5, "c", columns={"order_id": 1}, delay=timedelta(hours=1)),
        ]
    )
    assert [s.created for s in batch] == [True, True, False, True, True]
    assert [s.task.order_id for s in batch] == [1, None, 1, 2, 1]
    assert batch[4].state is TaskState.SLEEPING


def test_a_conflict_undoes_the_batch_and_nothing_else_of_the_transaction(engine, session):
    durable = Durable(session)
    session.add(Order(id=1))
    holder = durable.spawn(keyed(1, "m"))
    for calls, error in [
        ([keyed(1, "a"), refund.call(1).using(idempotency_key="m"), keyed(1, "z")], IdempotencyConflict),
        ([keyed(1, "a"), keyed(1, "m", on_duplicate="raise"), keyed(1, "z")], DuplicateTask),
        ([keyed(1, "a"), keyed(2, "m", strict=True), send_mail.call("ada")], IdempotencyConflict),
        ([keyed(1, "a"), keyed(2, "a", strict=True)], IdempotencyConflict),
    ]:
        with pytest.raises(error):
            durable.spawn_many(calls)
        assert session.scalars(select(BillingTask.id)).all() == [holder.task_id]
        assert not session.scalar(select(func.count()).select_from(MailTask))
    session.add(Order(id=2))
    session.commit()
    assert session.scalars(select(Order.id).order_by(Order.id)).all() == [1, 2]


def test_a_bad_call_in_a_batch_is_refused_before_anything_is_sent(engine, session):
    with statements(engine) as sent, pytest.raises(InvalidOptions):
        Durable(session).spawn_many([charge.call(1), charge.call(2).using(priority="high")])
    assert sent == []


def test_a_batch_of_any_size_is_a_few_statements(engine, session):
    durable = Durable(session)
    durable.spawn(charge.call(0))
    size = 2 * insert_many.ROWS_PER_STATEMENT + 10
    calls = [keyed(i, f"k{i % (size - 5)}") for i in range(size)]
    with statements(engine) as sent:
        batch = durable.spawn_many(calls)
    assert [s.created for s in batch] == [True] * (size - 5) + [False] * 5
    assert [sql.split()[0] for sql in sent] == [
        "SAVEPOINT",
        "SAVEPOINT",
        "WITH",
        "WITH",
        "WITH",
        "SELECT",
        "RELEASE",
        "RELEASE",
    ]
    with statements(engine) as sent:
        again = durable.spawn_many(calls)
    assert [s.task_id for s in again] == [s.task_id for s in batch]
    assert [sql.split()[0] for sql in sent] == [
        *["SAVEPOINT"] * 2,
        *["WITH"] * 3,
        *["SELECT"] * 3,
        *["RELEASE"] * 2,
    ]


def test_long_params_go_in_more_statements(engine, session, monkeypatch):
    monkeypatch.setattr(insert_many, "_PARAMS_CHARS_PER_STATEMENT", 1000)
    durable = Durable(session)
    durable.spawn(charge.call(0))
    calls = [send_mail.call(600 * "x" if i % 4 == 0 else "x") for i in range(9)]
    with statements(engine) as sent:
        batch = durable.spawn_many(calls)
    assert [s.task.params for s in batch] == [call.params for call in calls]
    assert [sql.split()[0] for sql in sent].count("WITH") == 3  # of four, two and three


def test_what_is_no_call_is_refused_by_name(scratch):
    durable = Durable(scratch)
    with pytest.raises(InvalidOptions, match="not a DeclarativeAttributeIntercept"):
        durable.spawn_many(charge.call(1))
    with pytest.raises(InvalidOptions, match="not a tuple"):
        durable.spawn_many([charge.call(1), (BillingTask, "charge", {"order_id": 2})])
    assert scratch.scalar(select(func.count()).select_from(BillingTask)) == 0


def test_an_empty_batch_is_no_task(scratch):
    assert not Durable(scratch).spawn_many([])


def test_a_batch_takes_any_iterable_once(scratch):
    batch = Durable(scratch).spawn_many(charge.call(i) for i in range(3))
    assert [s.task.params["order_id"] for s in batch] == [0, 1, 2]


def test_results_of_a_batch_are_a_sequence(scratch):
    batch = Durable(scratch).spawn_many([keyed(1, "a"), charge.call(2), keyed(3, "a"), send_mail.call("ada")])
    results = list(batch)
    assert len(batch) == 4
    assert [batch[i] for i in range(4)] == results == list(batch)
    assert (batch[-1], batch[1:3]) == (results[3], results[1:3])
    assert results[1] in batch
    with pytest.raises(IndexError):
        batch[4]


def test_calls_without_a_key_are_sent_as_they_come(engine, session):  # issue 5, workload 18
    size = 2 * insert_many.ROWS_PER_STATEMENT + 1
    Durable(session).spawn(charge.call(0))  # the transaction has begun
    before = []

    def calls():
        for n in range(size):
            before.append([sql.split()[0] for sql in sent].count("WITH"))
            yield charge.call(n)

    with statements(engine) as sent:
        batch = Durable(session).spawn_many(calls())
    assert [before[n] for n in (0, insert_many.ROWS_PER_STATEMENT, 2 * insert_many.ROWS_PER_STATEMENT)] == [
        0,
        1,
        2,
    ]
    by_id = select(BillingTask.params["order_id"].as_integer()).order_by(BillingTask.id).offset(1)
    assert session.scalars(by_id).all() == list(range(size))
    assert [s.task_id for s in batch] == sorted(s.task_id for s in batch)


def test_a_generator_of_calls_is_not_kept_in_memory(scratch):  # issue 5, workload 18
    durable = Durable(scratch)
    durable.spawn_many(
        charge.call(n) for n in range(2 * insert_many.ROWS_PER_STATEMENT)
    )  # what is compiled and cached once
    size = 20 * insert_many.ROWS_PER_STATEMENT
    tracemalloc.start()
    try:
        batch = durable.spawn_many(charge.call(n) for n in range(size))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(batch) == size
    # The results, and two chunks that are on their way; a call and its row take 2 kB.
    assert peak < 32 * size * 1.2 + 2 * insert_many.ROWS_PER_STATEMENT * 3_000


def test_calls_that_fail_while_they_are_made_undo_the_batch(scratch):
    def calls():
        yield from (charge.call(n) for n in range(insert_many.ROWS_PER_STATEMENT + 1))
        raise LookupError("no more orders")

    with pytest.raises(LookupError):
        Durable(scratch).spawn_many(calls())
    assert not scratch.scalar(select(func.count()).select_from(BillingTask))


def test_tasks_with_keys_have_ids_in_the_order_of_the_calls(scratch):
    batch = Durable(scratch).spawn_many([keyed(n, key) for n, key in enumerate("cab")])
    assert [s.task_id for s in batch] == sorted(s.task_id for s in batch)


def test_an_option_of_another_type_is_no_option_because_its_equal_was_one(scratch):
    durable = Durable(scratch)
    durable.spawn_many([charge.call(1).using(priority=1)])
    for call in (charge.call(1).using(priority=True), charge.call(1).using(priority=1.0)):
        with pytest.raises(InvalidOptions):
            durable.spawn_many([call])
        with pytest.raises(InvalidOptions):
            durable.spawn(call)


def test_tasks_of_a_batch_go_into_relationships(scratch):
    batch = Durable(scratch).spawn_many([keyed(i, f"k{i % 2}") for i in range(3)])
    scratch.add_all(Invoice(id=i, task=s.task) for i, s in enumerate(batch))
    scratch.flush()
    ids = scratch.scalars(select(Invoice.task_id).order_by(Invoice.id)).all()
    assert ids == [s.task_id for s in batch]


def test_repeated_key_in_a_batch_sees_the_earlier_calls(engine, session):
    durable = Durable(session)
    calls = [
        keyed(1, "k"),
        keyed(2, "k").using(on_duplicate="update", delay=timedelta(hours=1)),
        keyed(1, "k"),
        keyed(3, "k").using(on_duplicate="replace"),
        keyed(3, "k"),
    ]
    first, updated, returned, replaced, last = durable.spawn_many(calls)
    assert [s.created for s in (first, updated, returned, replaced, last)] == [
        True,
        False,
        False,
        True,
        False,
    ]
    assert first.task_id == updated.task_id == returned.task_id
    assert (returned.state, returned.params_match) == ("sleeping", False)
    assert (last.task_id, last.params_match) == (replaced.task_id, True)
