"""Spawning a task in the caller's transaction, without a key or with the first one to have it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from sa_durable import Durable, Exponential, InvalidResult, NoRetry, TaskNotFound, TaskState, once_key
from sa_durable.ids import uuid7
from sa_durable.telemetry import SpawnOutcome, on_spawn, remove_hook, spawn_counts
from tests.services import state_changes
from tests.shop import BillingTask, MailTask, Order, charge, refund, remind, send_mail

pytestmark = pytest.mark.service


def count(session: Session, model: type = BillingTask) -> int:
    return session.scalar(select(func.count()).select_from(model))


def test_a_new_task_has_every_default_in_place(scratch):
    spawned = Durable(scratch).spawn(charge.call(order_id=7))
    task = spawned.task
    assert (spawned.created, spawned.attempt, spawned.params_match) == (True, 1, True)
    assert (
        (task.id, task.run_id, task.state)
        == (spawned.task_id, spawned.run_id, spawned.state)
        == (
            task.id,
            task.run_id,
            TaskState.PENDING,
        )
    )
    assert (task.name, task.params, task.headers) == ("charge", {"order_id": 7}, None)
    assert (task.priority, task.attempt, task.max_attempts, task.token) == (0, 1, 3, 0)
    assert task.retry == {
        "kind": "exponential",
        "base_seconds": 5.0,
        "factor": 2.0,
        "cap_seconds": 300.0,
        "jitter": 0.2,
    }
    assert task.available_at == task.created_at
    nothing_yet = (
        "first_started_at",
        "finished_at",
        "started_at",
        "claimed_by",
        "lease_expires_at",
        "result",
    )
    nothing_ever = ("error", "parent_queue", "parent_id", "idempotency_key", "key_hold", "key_expires_at")
    assert {name: getattr(task, name) for name in nothing_yet + nothing_ever} == dict.fromkeys(
        nothing_yet + nothing_ever
    )


def test_ids_sort_by_the_time_of_spawning(scratch):
    durable = Durable(scratch)
    ids = [durable.spawn(charge.call(i)).task_id for i in range(20)]
    milliseconds = [id_.int >> 80 for id_ in ids]
    assert milliseconds == sorted(milliseconds)
    assert all(id_.version == 7 for id_ in ids)


def test_without_a_key_every_spawn_is_a_new_task(scratch):  # A13, P3
    durable = Durable(scratch)
    spawned = [durable.spawn(charge.call(1)) for _ in range(3)]
    spawned += durable.spawn_many([charge.call(1)] * 3)
    assert all(s.created for s in spawned)
    assert len({s.task_id for s in spawned}) == count(scratch) == 6


def test_an_explicit_key_beats_only_once(scratch):  # A13, P2
    durable = Durable(scratch)
    first = durable.spawn(charge.call(1), idempotency_key="k", only_once=True)
    assert first.task.idempotency_key == "k"
    assert durable.spawn(charge.call(1), only_once=True).created
    other_params = durable.spawn(charge.call(2), idempotency_key="k", only_once=True)
    assert (other_params.task_id, other_params.params_match) == (first.task_id, False)


def test_only_once_is_one_task_for_the_same_params_in_any_order(scratch):  # A12, P1
    durable = Durable(scratch)
    first = durable.spawn(BillingTask, "by name", {"a": 1, "b": {"x": [1, 2], "y": None}}, only_once=True)
    again = durable.spawn(BillingTask, "by name", {"b": {"y": None, "x": [1, 2]}, "a": 1.0}, only_once=True)
    assert (again.created, again.task_id, again.params_match) == (False, first.task_id, True)
    for other in ({"a": 1, "b": {"x": [2, 1], "y": None}}, {"a": 1, "b": {"x": [1, 2]}}, {}):
        assert durable.spawn(BillingTask, "by name", other, only_once=True).created
    assert durable.spawn(
        BillingTask, "other name", {"a": 1, "b": {"x": [1, 2], "y": None}}, only_once=True
    ).created


def test_only_once_depends_on_name_and_params_only(scratch):  # A12
    durable = Durable(scratch)
    first = durable.spawn(charge.call(7), only_once=True)
    again = durable.spawn(
        charge.call(7), only_once=True, max_attempts=9, headers={"trace": "x"}, priority=-3, retry=NoRetry()
    )
    assert again.task_id == first.task_id


def test_only_once_tells_neighbouring_big_integers_apart(scratch):
    durable = Durable(scratch)
    ids = [2**53, 2**53 + 1, 10**30, 10**30 + 1]
    assert all(durable.spawn(BillingTask, "big", {"id": i}, only_once=True).created for i in ids)
    assert not any(durable.spawn(BillingTask, "big", {"id": i}, only_once=True).created for i in ids)


def test_the_stored_derived_key_is_the_hash_that_postgresql_computes(scratch):  # A12
    spawned = Durable(scratch).spawn(charge.call(order_id=7, amount="9.90"), only_once=True)
    canonical = '["sa_durable/1","charge",{"amount":"9.90","order_id":7}]'
    digest = text("SELECT '~once1:' || encode(sha256(convert_to(:canonical, 'UTF8')), 'hex')")
    key = scratch.scalar(digest, {"canonical": canonical})
    task = spawned.task
    assert task.idempotency_key == key == once_key(task.name, task.params)


_ELSEWHERE = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sa_durable import Durable
from tests.shop import MailTask
engine = create_engine(sys.argv[1])
with Session(engine) as session, session.begin():
    params = {"to": "ada", "tags": {"b": 2, "a": 1, "\N{FOX FACE}": 1.5}}
    print(Durable(session).spawn(MailTask, "elsewhere", params, only_once=True).task_id)
"""


def test_only_once_is_one_task_across_processes_and_hash_seeds(engine, session, database_url):  # A12
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ELSEWHERE, database_url],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    ids = {UUID(process.communicate()[0].strip()) for process in processes}
    params = {"tags": {"\N{FOX FACE}": 1.5, "a": 1, "b": 2}, "to": "ada"}
    ids.add(Durable(session).spawn(MailTask, "elsewhere", params, only_once=True).task_id)
    assert len(ids) == count(session, MailTask) == 1


def test_options_of_spawn_call_handler_and_queue_override_in_this_order(scratch):
    durable = Durable(scratch)
    call = send_mail.call("ada")
    task = durable.spawn(call).task
    assert (task.priority, task.headers, task.retry) == (5, {"source": "shop"}, {"kind": "none"})
    task = durable.spawn(call.using(priority=6, headers={"source": "call"})).task
    assert (task.priority, task.headers, task.retry) == (6, {"source": "call"}, {"kind": "none"})
    task = durable.spawn(call.using(priority=6), priority=-7, retry=Exponential(jitter=0), headers=None).task
    assert (task.priority, task.headers, task.retry["jitter"]) == (-7, None, 0)
    assert durable.spawn(charge.call(1), max_attempts=None).task.max_attempts is None


def test_a_delayed_task_sleeps_by_the_databases_clock(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(remind.call("ada"))  # the handler says: in an hour
    assert spawned.state is TaskState.SLEEPING
    assert spawned.task.available_at - spawned.task.created_at == timedelta(hours=1)
    assert durable.spawn(remind.call("ada"), delay=timedelta(0)).state is TaskState.PENDING


def test_run_at_names_the_moment_and_the_past_is_due_now(scratch):
    durable = Durable(scratch)
    ahead = datetime(2200, 1, 1, 12, 30, tzinfo=UTC)
    later = durable.spawn(remind.call("ada"), run_at=ahead)  # instead of the handler's delay
    assert (later.state, later.task.available_at) == ("sleeping", ahead)
    long_ago = datetime(1999, 1, 1, tzinfo=UTC)
    due = durable.spawn(remind.call("ada"), run_at=long_ago)
    assert (due.state, due.task.available_at) == ("pending", long_ago)


def test_the_applications_own_columns_are_set_by_columns(scratch):
    scratch.add(Order(id=7))
    spawned = Durable(scratch).spawn(charge.call(7), columns={"order_id": 7})
    assert spawned.task.order.id == 7
    assert spawned.task in scratch.get(Order, 7).tasks


def test_rows_that_wait_in_the_session_are_written_first(scratch):
    scratch.add(Order(id=7))  # not flushed: without it the foreign key below would fail
    assert Durable(scratch).spawn(charge.call(7), columns={"order_id": 7}).created
    scratch.add(Order(id=8))
    assert Durable(scratch).spawn_many([charge.call(8)], columns={"order_id": 8})[0].created


def test_a_session_without_autoflush_keeps_its_rows_back(engine):
    with Session(engine, autoflush=False) as session:
        session.add(Order(id=7))
        Durable(session).spawn(charge.call(7))
        assert not session.scalar(select(func.count()).select_from(Order))


def test_spawning_by_name_is_spawning_by_call(scratch):
    durable = Durable(scratch)
    called = durable.spawn(charge.call(order_id=7, amount="1.50"), idempotency_key="k")
    named = durable.spawn(BillingTask, "charge", {"order_id": 7, "amount": "1.50"}, idempotency_key="k")
    assert (named.created, named.task_id, named.params_match) == (False, called.task_id, True)
    new = durable.spawn(BillingTask, "charge", {"order_id": "7"}).task  # encoded as the handler says
    assert (new.params, new.max_attempts) == ({"order_id": 7}, 3)


def test_name_without_a_local_handler_is_spawned(scratch):
    params = {"any": ["json", 1, 1.5, None, True, {"ключ": "🦊"}]}
    task = Durable(scratch).spawn(BillingTask, "of another service", params).task
    assert (task.name, task.params, task.max_attempts) == ("of another service", params, 5)


def test_a_rollback_takes_the_spawn_back(session):
    spawned = Durable(session).spawn(charge.call(1), idempotency_key="k")
    session.rollback()
    assert Durable(session).find_by_key(BillingTask, "k") is None
    with pytest.raises(TaskNotFound, match="never spawned, rolled back, or cleaned up"):
        Durable(session).result(spawned)


def test_the_service_neither_commits_nor_ends_the_callers_transaction(engine):
    with Session(engine) as session, Session(engine) as other:
        durable = Durable(session)
        transaction = session.begin()
        spawned = durable.spawn(charge.call(1), idempotency_key="k")
        durable.spawn(charge.call(1), idempotency_key="k")
        durable.spawn_many([charge.call(2)] * 3)
        durable.find_by_key(BillingTask, "k")
        durable.release_key(BillingTask, "k")
        durable.cancel(spawned)
        durable.result(spawned)
        assert session.get_transaction() is transaction
        assert transaction.is_active
        assert count(other) == 0
        session.commit()
        assert count(other) == 4


def test_a_result_tells_how_a_task_stands(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1))
    assert durable.result(spawned).state is TaskState.PENDING
    state_changes.claim(scratch, spawned.task_id)
    state_changes.complete(scratch, spawned.task_id, result="charged 1 for 1")
    by_result, by_task = durable.result(spawned), durable.result(spawned.task)
    by_id = durable.result(BillingTask, spawned.task_id)
    assert by_result == by_task == by_id
    assert (by_id.state, by_id.value, by_id.error) == (TaskState.COMPLETED, "charged 1 for 1", None)


def test_a_failed_tasks_result_has_the_error_and_no_value(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1))
    state_changes.live(scratch, spawned.task_id, "failed")
    outcome = durable.result(spawned)
    assert (outcome.state, outcome.value) == (TaskState.FAILED, None)
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "no")


def test_a_stored_result_of_another_type_is_a_typed_error(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1))
    state_changes.claim(scratch, spawned.task_id)
    state_changes.complete(scratch, spawned.task_id, result={"not": "text"})
    with pytest.raises(InvalidResult, match="another version of the handler"):
        durable.result(spawned)


def test_a_cancelled_task_stays_cancelled_and_its_history_keeps_the_run(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1))
    state_changes.claim(scratch, spawned.task_id)
    assert durable.cancel(spawned) is True
    task = scratch.get(BillingTask, spawned.task_id, populate_existing=True)
    assert (task.state, task.token, task.available_at) == ("cancelled", 2, None)
    finished = task.finished_at
    assert finished is not None
    [run] = task.runs
    assert (run.id, run.attempt, run.state, run.worker) == (spawned.run_id, 1, "cancelled", "a worker")
    assert durable.cancel(spawned) is False
    scratch.refresh(task)
    assert (task.finished_at, task.token) == (finished, 2)


def test_cancelling_takes_descendants_of_every_queue_and_depth_with_it(scratch):
    durable = Durable(scratch)

    def child(call, parent):
        spawned = durable.spawn(call)
        task = spawned.task
        task.parent_queue, task.parent_id = parent.model.__queue__, parent.task_id
        scratch.flush()
        return spawned

    root = durable.spawn(charge.call(1))
    son, daughter = child(send_mail.call("ada"), root), child(charge.call(2), root)
    grandson = child(refund.call(1), son)
    great = child(send_mail.call("bob"), grandson)
    over = child(charge.call(3), root)
    state_changes.live(scratch, over.task_id, "completed")
    below_over = child(charge.call(4), over)
    stranger = durable.spawn(charge.call(1))
    assert durable.cancel(root)
    states = {s.task_id: durable.result(s).state for s in (root, son, daughter, grandson, great)}
    assert set(states.values()) == {TaskState.CANCELLED}
    assert durable.result(over).state is TaskState.COMPLETED
    # Its parent was over and not cancelled: it goes on.
    assert durable.result(below_over).state is durable.result(stranger).state is TaskState.PENDING


def test_a_task_that_isnt_there_cant_be_cancelled_or_asked_about(scratch):
    durable = Durable(scratch)
    with pytest.raises(TaskNotFound):
        durable.cancel(BillingTask, uuid7())
    with pytest.raises(TaskNotFound):
        durable.result(MailTask, durable.spawn(charge.call(1)).task_id)


def test_a_new_task_is_counted_and_shown_to_hooks(scratch):
    seen = []
    hook = on_spawn(seen.append)
    before = spawn_counts().get(("billing", "charge", "created"), 0)
    try:
        one = Durable(scratch).spawn(charge.call(1), idempotency_key="k")
        two = Durable(scratch).spawn_many([charge.call(2), charge.call(3)])
    finally:
        remove_hook(hook)
    assert [s.task_id for s in seen] == [one.task_id, *(s.task_id for s in two)]
    assert {(s.queue, s.task, s.outcome) for s in seen} == {("billing", "charge", SpawnOutcome.CREATED)}
    assert spawn_counts()["billing", "charge", "created"] - before == 3
