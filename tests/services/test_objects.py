"""Tasks as ORM objects of the application's own session."""

from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session, selectinload, sessionmaker
from sqlalchemy.orm.exc import ObjectDeletedError

from sa_durable import DuplicateTask, Durable, IdempotencyConflict, KeyedObject, RetryTransaction
from tests.databases import throwaway
from tests.services import state_changes
from tests.services.observed import statements
from tests.shop import Base, BillingTask, Invoice, MailTask, Order, charge, remind, send_mail

pytestmark = pytest.mark.service


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(BillingTask))


def test_an_added_task_is_spawned_at_flush_with_every_default_in_place(scratch):
    added, spawned = charge.task(order_id=7), Durable(scratch).spawn(charge.call(order_id=7)).task
    scratch.add(added)
    scratch.flush()
    scratch.refresh(added)
    differ = {"id", "run_id", "available_at", "created_at"}
    for column in set(inspect(BillingTask).columns.keys()) - differ:
        assert getattr(added, column) == getattr(spawned, column), column
    assert added.available_at == added.created_at
    assert None not in (added.id, added.run_id)


def test_an_object_has_its_id_before_it_is_flushed():
    task = charge.task(7)
    assert isinstance(task.id, UUID)
    assert (task.name, task.params) == ("charge", {"order_id": 7})


def test_the_handlers_options_hold_for_objects_too(scratch):
    mail, later = send_mail.task("ada"), remind.task(to="ada")
    scratch.add_all([mail, later])
    scratch.flush()
    assert (mail.priority, mail.headers, mail.retry) == (5, {"source": "shop"}, {"kind": "none"})
    assert later.state == "sleeping"
    assert timedelta(minutes=59) < later.available_at - later.created_at <= timedelta(hours=1)


def test_a_task_appended_to_its_order_is_written_after_it(engine):
    with Session(engine) as session, session.begin():
        order = Order(id=7)
        order.tasks.append(charge.task(order_id=7))
        order.tasks.append(charge.task(order_id=7))
        session.add(order)
    with Session(engine) as session:
        order = session.scalars(select(Order).options(selectinload(Order.tasks))).one()
        assert [task.order_id for task in order.tasks] == [7, 7]
        assert all(task.state == "pending" for task in order.tasks)


def test_a_spawned_task_goes_into_relationships_without_being_loaded(engine, session):
    durable = Durable(session)
    first = durable.spawn(charge.call(1), idempotency_key="k")
    second = durable.spawn(charge.call(1), idempotency_key="k")
    with statements(engine) as sent:
        session.add(Invoice(id=1, task=first.task))
        session.add(Invoice(id=2, task=second.task))
        session.flush()
    assert all(sql.startswith("INSERT INTO invoices") for sql in sent)
    assert first.task is second.task
    invoices = session.scalars(select(Invoice.task_id)).all()
    assert invoices == [first.task_id, first.task_id]
    order = Order(id=3)
    order.tasks.append(first.task)
    session.add(order)
    session.commit()
    assert session.get(BillingTask, first.task_id).order is order


_FRESH = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from sa_durable import Durable
from tests.shop import charge
with Session(create_engine(sys.argv[1])) as session:
    spawned = Durable(session).spawn(charge.call(1))
    assert spawned.task.id == spawned.task_id
    assert spawned.task.state == "pending"
    print("attached")
"""


def test_a_spawned_task_can_be_the_first_object_that_a_process_makes(engine, database_url):
    # Before anything else has configured the mappers.
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, database_url],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "attached\n", done.stderr


def test_a_task_that_is_loaded_already_is_the_spawned_one(scratch):
    durable = Durable(scratch)
    durable.spawn(charge.call(1), idempotency_key="k")
    loaded = scratch.scalars(select(BillingTask)).one()
    assert durable.spawn(charge.call(1), idempotency_key="k").task is loaded
    assert durable.find_by_key(BillingTask, "k") is loaded


def test_loaded_objects_see_what_the_service_does(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1), idempotency_key="k", hold="succeeded")
    task = spawned.task
    assert (task.state, task.params) == ("pending", {"order_id": 1})
    durable.spawn(charge.call(2), idempotency_key="k", on_duplicate="update", delay=timedelta(hours=1))
    assert (task.state, task.params) == ("sleeping", {"order_id": 2})
    durable.release_key(BillingTask, "k")
    assert task.key_hold is None
    durable.cancel(task)
    assert (task.state, task.token, task.available_at) == ("cancelled", 1, None)
    assert task.finished_at is not None


def test_loaded_objects_see_that_they_were_replaced(scratch):
    durable = Durable(scratch)
    holder = durable.spawn(charge.call(1), idempotency_key="k").task
    child = durable.spawn(charge.call(2)).task
    child.parent_queue, child.parent_id = "billing", holder.id
    assert (holder.state, child.state) == ("pending", "pending")
    durable.spawn(charge.call(3), idempotency_key="k", on_duplicate="replace")
    assert (holder.state, child.state) == ("cancelled", "cancelled")


def test_loaded_objects_see_that_their_expired_key_was_taken(scratch):
    durable = Durable(scratch)
    options = {"idempotency_key": "k", "hold": "forever", "key_ttl": timedelta(microseconds=1)}
    spawned = durable.spawn(charge.call(1), **options)
    state_changes.live(scratch, spawned.task_id, "completed")
    holder = scratch.get(BillingTask, spawned.task_id)
    assert holder.key_hold == "forever"
    assert durable.spawn(charge.call(1), **options).created
    assert holder.key_hold is None


def test_unflushed_changes_of_the_caller_are_written_not_lost(scratch):
    durable = Durable(scratch)
    scratch.add(Order(id=7))
    task = durable.spawn(charge.call(1), idempotency_key="k").task
    task.order_id = 7
    durable.spawn(charge.call(2), idempotency_key="k", on_duplicate="update")
    assert (task.order_id, task.params) == (7, {"order_id": 2})


def test_a_rolled_back_savepoint_takes_its_tasks_with_it(engine):
    with Session(engine) as session, session.begin():
        durable = Durable(session)
        kept = durable.spawn(charge.call(1), idempotency_key="outer")
        with session.begin_nested() as savepoint:
            lost = durable.spawn(charge.call(1), idempotency_key="inner")
            session.add(charge.task(9))
            durable.release_key(BillingTask, "outer")
            savepoint.rollback()
        assert durable.spawn(charge.call(1), idempotency_key="outer").task_id == kept.task_id
        assert durable.spawn(charge.call(1), idempotency_key="inner").created
        with pytest.raises(ObjectDeletedError):
            _ = lost.task.state
    with Session(engine) as session:
        assert count(session) == 2


def test_a_released_savepoint_keeps_its_tasks(engine):
    with Session(engine) as session, session.begin():
        with session.begin_nested(), session.begin_nested():
            Durable(session).spawn(charge.call(1), idempotency_key="k")
        assert not Durable(session).spawn(charge.call(1), idempotency_key="k").created
    with Session(engine) as session:
        assert count(session) == 1


def test_the_service_takes_a_scoped_session(engine):
    scoped = scoped_session(sessionmaker(engine))
    spawned = Durable(scoped).spawn(charge.call(1), idempotency_key="k")
    assert spawned.task in scoped()
    scoped.commit()
    assert not Durable(scoped).spawn(charge.call(1), idempotency_key="k").created
    scoped.remove()


def test_the_service_takes_a_session_on_a_connection(engine):
    with engine.connect() as connection, connection.begin() as transaction:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            Durable(session).spawn(charge.call(1), idempotency_key="k")
            session.commit()
        with Session(connection) as session:
            assert not Durable(session).spawn(charge.call(1), idempotency_key="k").created
        transaction.rollback()
    with Session(engine) as session:
        assert count(session) == 0


@pytest.mark.parametrize("by", ["base", "model", "queue's metadata"])
def test_the_service_takes_a_session_that_is_bound_by_model(engine, by):
    binds = {"base": {Base: engine}, "model": {BillingTask: engine}}.get(
        by, dict.fromkeys(Base.metadata.tables.values(), engine)
    )
    with Session(binds=binds) as session:
        durable = Durable(session)
        first = durable.spawn(charge.call(1), idempotency_key="k")
        assert durable.spawn(charge.call(1), idempotency_key="k").task_id == first.task_id
        assert durable.spawn_many([charge.call(1), charge.call(2)])[1].created
        assert durable.find_by_key(BillingTask, "k") is first.task
        assert durable.result(first).state == "pending"
        assert durable.pause(BillingTask) and durable.resume(BillingTask)
        assert durable.set_retention(BillingTask, timedelta(days=1))
        if by != "model":
            assert durable.cancel(first)


def test_queue_operations_write_where_the_tasks_are(engine, server_url):
    with (
        throwaway(server_url, Base.metadata) as other,
        Session(other, binds={BillingTask: engine}) as session,
    ):
        assert Durable(session).pause(BillingTask)
        session.commit()
        with Session(engine) as here, Session(other) as there:
            assert here.get(BillingTask.Queue, "billing").paused_at is not None
            assert there.get(BillingTask.Queue, "billing") is None


def test_a_key_on_an_object_is_refused_where_it_is_set():
    task = charge.task(1)
    for set_key in (
        lambda: setattr(task, "idempotency_key", "k"),
        lambda: BillingTask(idempotency_key="k"),
    ):
        with pytest.raises(KeyedObject, match="Use Durable"):
            set_key()
    task.idempotency_key = None
    assert task.idempotency_key is None


def test_an_object_of_an_only_once_handler_is_refused():
    @MailTask.handler("once object", only_once=True)
    def once(ctx: object) -> None: ...

    try:
        with pytest.raises(KeyedObject, match="only_once"):
            once.task()
    finally:
        del MailTask.__handlers__["once object"]


def test_past_the_guard_the_database_still_refuses_a_second_holder(scratch):
    Durable(scratch).spawn(charge.call(1), idempotency_key="k")
    task = charge.task(1)
    scratch.add(task)
    task.__dict__["idempotency_key"], task.__dict__["key_hold"] = "k", "active"
    with pytest.raises(IntegrityError, match="uq_durable_billing_tasks_key"), scratch.begin_nested():
        scratch.flush()
    scratch.expunge_all()


def test_a_detached_task_with_a_key_is_merged_back(engine):
    with Session(engine) as session, session.begin():
        durable = Durable(session)
        task = durable.spawn(charge.call(1), idempotency_key="k").task
        session.refresh(task)
        session.expunge(task)
    copy = pickle.loads(pickle.dumps(task))
    with Session(engine) as session, session.begin():
        merged = session.merge(copy)
        assert (merged.idempotency_key, merged.params) == ("k", {"order_id": 1})
        assert merged in session


@pytest.mark.owner
def test_tasks_and_what_stands_beside_them_pickle(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1), idempotency_key="k")
    state_changes.claim(scratch, spawned.task_id)
    durable.cancel(spawned)
    task = scratch.get(BillingTask, spawned.task_id, populate_existing=True)
    run = task.runs[0]
    event = BillingTask.Event(name="paid", payload={"a": 1})
    checkpoint = BillingTask.Checkpoint(task_id=task.id, name="step", value=[1], attempt=1)
    wait = BillingTask.Wait(task_id=task.id, step="step", event_name="paid", event_queue="billing")
    queue = BillingTask.Queue(name="billing")
    scratch.add_all([event, checkpoint, wait, queue])
    scratch.flush()
    for row in (task, run, event, checkpoint, wait, queue):
        scratch.refresh(row)
        copy = pickle.loads(pickle.dumps(row))
        assert type(copy) is type(row)
        for attribute in inspect(type(row)).column_attrs:
            assert getattr(copy, attribute.key) == getattr(row, attribute.key)


def test_a_spawns_result_pickles_without_its_session(scratch):
    spawned = Durable(scratch).spawn(charge.call(1))
    copy = pickle.loads(pickle.dumps(spawned))
    assert copy == spawned
    assert copy.model is BillingTask
    with pytest.raises(LookupError, match="detached from its session"):
        _ = copy.task


def test_outcomes_and_errors_pickle(scratch):
    durable = Durable(scratch)
    spawned = durable.spawn(charge.call(1), idempotency_key="k")
    outcome = durable.result(spawned)
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    for error in (
        DuplicateTask("billing", "k", spawned.task_id, "pending"),
        IdempotencyConflict("billing", "k", spawned.task_id, "called 'x', not 'y'"),
        RetryTransaction("again", "40001"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_application_queries_join_and_filter_tasks_like_any_rows(scratch):
    scratch.add_all([Order(id=1), Order(id=2)])
    durable = Durable(scratch)
    durable.spawn_many([charge.call(i).using(columns={"order_id": i}) for i in (1, 1, 2)])
    by_order = (
        select(Order.id, func.count(BillingTask.id)).join(Order.tasks).group_by(Order.id).order_by(Order.id)
    )
    assert scratch.execute(by_order).all() == [(1, 2), (2, 1)]
    of_params = select(BillingTask.order_id).where(BillingTask.params["order_id"].as_integer() == 2)
    assert scratch.scalars(of_params).all() == [2]
