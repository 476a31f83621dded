"""Durable.retry (B22), and what becomes of the key (A11)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Computed, Engine, Identity, MetaData, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_durable import (
    Cancellation,
    Durable,
    DurableTask,
    Exponential,
    InvalidState,
    KeyTaken,
    TaskNotFound,
    TaskState,
)
from sa_durable.services import claims, runs
from sa_durable.testing import checkpoint_factory, task_factory, wait_factory
from sa_durable.values import TaskError
from tests.databases import throwaway
from tests.services import state_changes
from tests.services.claiming import claim, do, history, row
from tests.services.observed import statements
from tests.services.state_changes import LIVES
from tests.shop import BillingTask, MailTask, Order, charge, refund, send_mail

pytestmark = pytest.mark.service

HOUR = timedelta(hours=1)
ENDS = ("failed", "cancelled", "cancelled unseen")


def ended(engine: Engine, life: str = "failed", call: Any = None, **options: Any) -> UUID:
    """A task that has lived so."""
    with Session(engine) as session, session.begin():
        spawned = Durable(session).spawn(call or charge.call(1), **options)
        state_changes.live(session, spawned.task_id, life)
        return spawned.task_id


def change(engine: Engine, task_id: UUID, **values: Any) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(BillingTask).where(BillingTask.id == task_id).values(**values))


def task_of(engine: Engine, task_id: UUID) -> Any:
    with Session(engine) as session:
        task = session.get(BillingTask, task_id)
        session.expunge(task)
        return task


# In place


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_retried_task_is_ready_for_its_next_attempt(client, engine, state):
    with Session(engine) as session, session.begin():
        task = task_factory(BillingTask, session)(
            state=state, started=True, attempt=3, max_attempts=3, error={"type": "X", "message": "no"}
        )
        before, runs_before = task.run_id, [run.id for run in task.runs]
        task_id, token = task.id, task.token
    again = client.durable.retry(BillingTask, task_id)
    client.session.commit()
    after = task_of(engine, task_id)
    assert (again.task_id, again.attempt, again.created, again.state) == (
        task_id,
        4,
        False,
        TaskState.PENDING,
    )
    assert (after.state, after.attempt, after.run_id) == (
        "pending",
        4,
        again.run_id,
    ) and again.run_id != before
    assert (after.max_attempts, after.token) == (4, token + 1)
    assert (after.error, after.finished_at, after.claimed_by, after.started_at) == (None, None, None, None)
    assert after.lease_expires_at is None and after.available_at is not None
    with Session(engine) as session:
        assert [run.id for run in session.get(BillingTask, task_id).runs] == runs_before  # as it was


def test_a_retry_sees_to_one_more_attempt_and_takes_none_away(engine):
    for most, attempts in ((5, 5), (1, 2), (None, None)):
        task = ended(engine, max_attempts=most)
        with Session(engine) as session, session.begin():
            assert Durable(session).retry(BillingTask, task).attempt == 2
        assert task_of(engine, task).max_attempts == attempts


def test_attempt_that_never_started_is_not_counted(engine):
    task = ended(engine, "cancelled unseen")
    with Session(engine) as session, session.begin():
        assert Durable(session).retry(BillingTask, task).attempt == 1
        assert Durable(session).cancel(BillingTask, task)
        assert Durable(session).retry(BillingTask, task).attempt == 1
        assert Durable(session).runs(BillingTask, task)[0].attempt == 1


def test_next_attempt_finds_the_checkpoints_and_extends_the_history(engine):
    with Session(engine) as session, session.begin():
        task_id = Durable(session).spawn(send_mail.call(to="x")).task_id
    for attempt in (1, 2, 3):
        [claimed] = claim(engine)
        assert (claimed.attempt, claimed.max_attempts, claimed.resumed) == (
            attempt,
            max(attempt, 5),
            attempt > 1,
        )
        with Session(engine) as session, session.begin():
            if attempt == 1:
                checkpoint_factory(MailTask, session)(task=session.get(MailTask, task_id), name="step")
            [saved] = session.scalars(select(MailTask.Checkpoint.name))
            assert saved == "step"
        do(engine, runs.fail, claimed, TaskError("ValueError", f"no {attempt}"))
        assert row(engine, task_id).state == "failed"
        do(engine, lambda session, model: Durable(session).retry(model, task_id))
    assert [(run.attempt, run.error["message"]) for run in history(engine, task_id)] == [
        (1, "no 1"),
        (2, "no 2"),
        (3, "no 3"),
    ]


def test_a_worker_that_had_it_before_can_no_longer_write(engine):
    with Session(engine) as session, session.begin():
        task = Durable(session).spawn(send_mail.call(to="x"))
    [old] = claim(engine)
    do(engine, lambda session, _: Durable(session).cancel(task))
    do(engine, lambda session, _: Durable(session).retry(task))
    [new] = claim(engine, worker="w2")
    assert do(engine, claims.extend, {old.task_id: old.token}, lease=HOUR) == set()
    with pytest.raises(claims.LeaseLost):
        do(engine, runs.complete, old, "late")
    do(engine, runs.complete, new, "in time")
    assert row(engine, task.task_id).result == "in time"


# B22
def test_elapsed_max_duration_restarts(client, engine):
    task = ended(engine, cancellation=Cancellation(max_duration=HOUR))
    change(engine, task, cancel_at=func.now() - 2 * HOUR)
    client.durable.retry(BillingTask, task)
    client.session.commit()
    after = task_of(engine, task)
    assert after.cancel_at == after.available_at + HOUR


def test_a_deadline_to_start_is_over_once(engine):
    limits = Cancellation(start_within=HOUR, max_duration=2 * HOUR)
    with Session(engine) as session, session.begin():
        task = Durable(session).spawn(send_mail.call(to="x"), cancellation=limits).task_id
        Durable(session).cancel(MailTask, task)
        Durable(session).retry(MailTask, task)
    assert row(engine, task).cancel_at is None
    claim(engine)
    started = row(engine, task)
    assert started.cancel_at == started.first_started_at + 2 * HOUR


def test_retried_task_waits_again_for_what_it_still_needs(engine):
    with Session(engine) as session, session.begin():
        task = task_factory(MailTask, session)(cancelled=True, started=True)
        wait_factory(MailTask, session)(task=task, timeout_at=func.now() - HOUR)
        other = wait_factory(MailTask, session)()
        Durable(session).retry(task)
        assert session.scalars(select(MailTask.Wait.task_id)).all() == [other.task_id]


def test_loaded_objects_see_the_retry_and_pending_changes_are_written(engine):
    task_id = ended(engine)
    with Session(engine) as session, session.begin():
        task = session.get(BillingTask, task_id)
        task.params = {"order_id": 8}  # mended by hand
        again = Durable(session).retry(task)
        assert again.task is task
        assert (task.state, task.attempt, task.run_id, task.error) == ("pending", 2, again.run_id, None)
        new = Durable(session).retry(BillingTask, ended(engine), as_new=True).task
        assert (new.state, new.attempt, new.params) == ("pending", 1, {"order_id": 1})
    assert task_of(engine, task_id).params == {"order_id": 8}


@pytest.mark.parametrize("as_new", [False, True])
def test_what_goes_on_or_has_completed_is_refused_and_untouched(client, engine, as_new):
    for life in LIVES.keys() - ENDS:
        task = ended(engine, life)
        before = task_of(engine, task)
        with pytest.raises(InvalidState, match=r"can be retried\. The task is untouched\.") as refused:
            client.durable.retry(BillingTask, task, as_new=as_new)
        assert (refused.value.task_id, refused.value.state) == (task, before.state)
        after = task_of(engine, task)
        assert (after.token, after.run_id, after.state) == (before.token, before.run_id, before.state)
    with pytest.raises(TaskNotFound):
        client.durable.retry(BillingTask, UUID(int=1), as_new=as_new)
    assert client.durable.spawn(charge.call(1)).created  # the transaction goes on


# As a new task


def test_a_new_task_is_to_do_the_same_from_the_start(client, engine):
    policy = Exponential(HOUR)
    with Session(engine) as session, session.begin():
        session.add(Order(id=7))
    old = ended(
        engine,
        call=refund.call(order_id=7),
        headers={"trace": "t"},
        priority=-3,
        max_attempts=2,
        retry=policy,
        cancellation=Cancellation(start_within=HOUR, max_duration=2 * HOUR),
        columns={"order_id": 7},
    )
    with Session(engine) as session, session.begin():
        checkpoint_factory(BillingTask, session)(task=session.get(BillingTask, old), name="step")
        session.execute(
            update(BillingTask).values(parent_queue="billing", parent_id=UUID(int=1), awaited=True, attempt=2)
        )
    new = client.durable.retry(BillingTask, old, as_new=True)
    client.session.commit()
    assert (new.attempt, new.created, new.state) == (1, True, TaskState.PENDING) and new.task_id != old
    before, after = task_of(engine, old), task_of(engine, new.task_id)
    same = ("name", "params", "headers", "priority", "max_attempts", "retry", "max_duration", "order_id")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert (after.state, after.attempt, after.run_id, after.token) == ("pending", 1, new.run_id, 0)
    assert (after.cancel_at, after.parent_id, after.parent_queue, after.awaited) == (None, None, None, False)
    assert after.created_at == after.available_at > before.created_at and before.state == "failed"
    with Session(engine) as session:
        assert set(session.scalars(select(BillingTask.Checkpoint.task_id))) == {old}


# A11: the key

KEYED = [
    (life, hold) for life in ENDS for hold in ("active", "succeeded") + (("queued",) * (life == ENDS[2]))
]


@pytest.mark.parametrize(("life", "hold"), KEYED)
@pytest.mark.parametrize("as_new", [False, True])
def test_a_free_key_is_taken_back(client, engine, life, hold, as_new):
    task = ended(engine, life, idempotency_key="k", hold=hold)
    assert client.durable.find_by_key(BillingTask, "k") is None
    again = client.durable.retry(BillingTask, task, as_new=as_new)
    found = client.durable.spawn(charge.call(1), idempotency_key="k", hold=hold)
    assert (found.task_id, found.created) == (again.task_id, False)
    client.session.commit()
    after = task_of(engine, again.task_id)
    assert (after.idempotency_key, after.key_hold, after.key_expires_at) == ("k", hold, None)


@pytest.mark.parametrize("life", ENDS)
@pytest.mark.parametrize("as_new", [False, True])
def test_a_key_held_for_ever_is_kept_or_handed_on(client, engine, life, as_new):
    task = ended(engine, life, idempotency_key="k", hold="forever", key_ttl=HOUR)
    again = client.durable.retry(BillingTask, task, as_new=as_new)
    assert client.durable.find_by_key(BillingTask, "k").id == again.task_id
    client.session.commit()
    after = task_of(engine, again.task_id)
    assert (after.key_hold, after.key_expires_at) == ("forever", after.created_at + HOUR)
    assert task_of(engine, task).key_hold == (None if as_new else "forever")


def test_expired_key_is_held_while_the_retried_task_is_active(engine, session):
    task = ended(engine, idempotency_key="k", hold="succeeded", key_ttl=HOUR)
    change(engine, task, key_expires_at=func.now() - HOUR)
    durable = Durable(session)
    durable.retry(BillingTask, task)
    assert not durable.spawn(charge.call(1), idempotency_key="k").created
    state_changes.claim(session, task)
    state_changes.complete(session, task)
    assert durable.spawn(charge.call(1), idempotency_key="k").created


def test_key_released_manually_or_by_the_start_stays_free(engine, session):
    durable = Durable(session)
    released = durable.spawn(charge.call(1), idempotency_key="released").task_id
    durable.release_key(BillingTask, "released")
    started = durable.spawn(charge.call(1), idempotency_key="started", hold="queued").task_id
    for task in (released, started):
        state_changes.live(session, task, "failed")
        assert not durable.retry(BillingTask, task).created
    for key in ("released", "started"):
        assert durable.spawn(charge.call(1), idempotency_key=key).created
    state_changes.live(session, released, "failed")
    assert durable.retry(BillingTask, released, as_new=True).task.idempotency_key is None


@pytest.mark.parametrize("state", ["pending", "completed"])
@pytest.mark.parametrize(("life", "hold"), KEYED)
@pytest.mark.parametrize("as_new", [False, True])
def test_a_key_that_another_task_holds_is_an_error_that_names_it(client, engine, life, hold, state, as_new):
    task = ended(engine, life, idempotency_key="k", hold=hold)
    with Session(engine) as session, session.begin():
        holder = Durable(session).spawn(refund.call(2), idempotency_key="k", hold="succeeded").task_id
        state_changes.live(session, holder, state)
    before = task_of(engine, task)
    with pytest.raises(KeyTaken, match="Retry with detach=True") as refused:
        client.durable.retry(BillingTask, task, as_new=as_new)
    error = refused.value
    assert (error.queue, error.key, error.task_id, error.state) == ("billing", "k", holder, state)
    assert client.durable.spawn(charge.call(9)).created  # the transaction goes on
    client.session.commit()
    after = task_of(engine, task)
    assert (after.state, after.token, after.key_hold) == (before.state, before.token, hold)


@pytest.mark.parametrize(("life", "hold"), KEYED)
@pytest.mark.parametrize("as_new", [False, True])
def test_detached_it_goes_on_without_the_key(client, engine, life, hold, as_new):
    task = ended(engine, life, idempotency_key="k", hold=hold)
    holder = ended(engine, "running", idempotency_key="k")
    again = client.durable.retry(BillingTask, task, as_new=as_new, detach=True)
    assert client.durable.find_by_key(BillingTask, "k").id == holder
    client.session.commit()
    after = task_of(engine, again.task_id)
    assert (after.state, after.key_hold) == ("pending", None)
    assert after.idempotency_key == (None if as_new else "k")  # history


@pytest.mark.parametrize("as_new", [False, True])
def test_detaching_leaves_a_free_key_to_the_task(engine, session, as_new):
    task = ended(engine, idempotency_key="k")
    again = Durable(session).retry(BillingTask, task, as_new=as_new, detach=True)
    assert Durable(session).find_by_key(BillingTask, "k").id == again.task_id


@pytest.mark.parametrize("as_new", [False, True])
def test_a_holder_whose_time_is_over_gives_way(engine, session, as_new):
    task = ended(engine, idempotency_key="k")
    holder = ended(engine, "completed", idempotency_key="k", hold="forever", key_ttl=HOUR)
    change(engine, holder, key_expires_at=func.now() - HOUR)
    again = Durable(session).retry(BillingTask, task, as_new=as_new)
    assert Durable(session).find_by_key(BillingTask, "k").id == again.task_id


@pytest.mark.owner
def test_a_unique_index_of_the_applications_own_says_so_itself(engine, session):
    """And isn't taken for the key's."""
    session.execute(
        text("CREATE UNIQUE INDEX only_one ON durable_billing_tasks (name) WHERE state = 'pending'")
    )
    durable = Durable(session)
    task = durable.spawn(charge.call(1), idempotency_key="k").task_id
    state_changes.live(session, task, "failed")
    durable.spawn(charge.call(1))
    with pytest.raises(Exception, match="only_one"):
        durable.retry(BillingTask, task)
    assert durable.find_by_key(BillingTask, "k") is None  # the transaction goes on
    session.rollback()


def test_retry_costs_a_lock_an_update_and_a_select_of_waits(engine, session):
    task, keyed = ended(engine), ended(engine, idempotency_key="k")
    Durable(session).find_by_key(BillingTask, "x")  # the schema has been looked at
    with statements(session.connection()) as sent:
        Durable(session).retry(BillingTask, task)
    assert [sql.split()[0] for sql in sent] == ["SELECT", "WITH", "UPDATE"]
    with statements(session.connection()) as sent:
        Durable(session).retry(BillingTask, keyed)
    words = [sql.split()[0] for sql in sent]
    assert words == ["SELECT", "WITH", "SELECT", "SAVEPOINT", "UPDATE", "RELEASE"]


def test_a_new_task_gets_what_columns_of_the_applications_own_can_be_given(server_url):
    class Base(DeclarativeBase):
        metadata = MetaData(schema="shop")

    class OwnTask(DurableTask, Base):
        __queue__ = "own"
        number: Mapped[int] = mapped_column(default=1)
        renamed: Mapped[str | None] = mapped_column("other name")
        twice: Mapped[int] = mapped_column(Computed("number * 2", persisted=True))
        counted: Mapped[int] = mapped_column(Identity(always=True))

    @OwnTask.handler()
    def work(ctx: object) -> None: ...

    with throwaway(server_url) as engine, Session(engine) as session, session.begin():
        session.execute(text("CREATE SCHEMA shop"))
        Base.metadata.create_all(session.connection())
        durable = Durable(session)
        old = durable.spawn(work.call(), columns={"number": 7, "renamed": "x"}, idempotency_key="k")
        durable.cancel(old)
        new = durable.retry(old, as_new=True).task
        assert (new.number, new.renamed, new.twice, new.counted) == (7, "x", 14, 2)
        assert durable.retry(old, detach=True).attempt == 1
        assert durable.count_ready(OwnTask) == 2 and len(durable.runs(new)) == 1
        durable.cancel(old)
        assert durable.clean_up(OwnTask, older_than=timedelta(0)).tasks == 1
