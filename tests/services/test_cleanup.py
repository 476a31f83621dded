"""B25: clean-up takes what is over and old, and nothing that anybody still needs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, func, insert, select, update
from sqlalchemy.orm import Session

from sa_durable import CleanedUp, Durable, InvalidOptions, TaskNotFound
from sa_durable.services import cleanup
from sa_durable.testing import checkpoint_factory, event_factory, queue_factory, task_factory, wait_factory
from tests.services.claiming import change, spawn
from tests.services.observed import statements
from tests.shop import BillingTask, Invoice, MailTask, charge, send_mail
from tests.waiting import in_thread, pid_of, wait_until_blocked

pytestmark = pytest.mark.service

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ENDS = ("completed", "failed", "cancelled")


def ago(age: timedelta) -> Any:
    return func.now() - age


def made(engine: Engine, model: Any = MailTask, **values: Any) -> UUID:
    with Session(engine) as session, session.begin():
        return task_factory(model, session)(**values).id


def over(engine: Engine, age: timedelta = 2 * DAY, state: str = "completed", **values: Any) -> UUID:
    """A task that ended that long ago."""
    return made(engine, state=state, finished_at=ago(age), **values)


def event(engine: Engine, name: str = "paid", age: timedelta = 2 * DAY, **values: Any) -> None:
    with Session(engine) as session, session.begin():
        settled = {"settled": True, "settled_at": ago(age), "emitted_at": ago(age)}
        event_factory(MailTask, session)(name=name, **{**settled, **values})


def clean(engine: Engine, model: Any = MailTask, age: timedelta = DAY, limit: int = 100) -> CleanedUp:
    with Session(engine) as session, session.begin():
        return Durable(session).clean_up(model, older_than=age, limit=limit)


def left(engine: Engine, column: Any = MailTask.id) -> set[Any]:
    with Session(engine) as session:
        return set(session.scalars(select(column)))


# What goes


def test_clean_up_deletes_old_tasks_and_events_and_frees_keys(client, engine):
    old = [over(engine, state=state, idempotency_key=state, hold="forever") for state in ENDS]
    young = {over(engine, age=HOUR, state=state) for state in ENDS}
    active = {made(engine, state=state) for state in ("pending", "running", "sleeping")}
    event(engine, "paid")
    event(engine, "paid", too_late=True, settled_at=ago(2 * DAY))
    event(engine, "new", HOUR)
    event(engine, "open", settled=False, settled_at=None)
    assert client.durable.find_by_key(MailTask, "failed").id == old[1]
    assert client.durable.clean_up(MailTask, older_than=DAY) == CleanedUp(tasks=3, events=2)
    client.session.commit()
    assert left(engine) == young | active and left(engine, MailTask.Event.name) == {"new", "open"}
    assert client.durable.find_by_key(MailTask, "failed") is None
    assert client.durable.spawn(send_mail.call(to="x"), idempotency_key="failed").created
    with pytest.raises(TaskNotFound):
        client.durable.result(MailTask, old[0])
    assert client.durable.clean_up(MailTask, older_than=DAY) == CleanedUp(0, 0)


def test_the_longest_ended_go_first_and_at_most_limit_of_them(client, engine):
    tasks = [over(engine, n * DAY) for n in (2, 5, 3, 4)]
    for n in (2, 5, 3, 4):
        event(engine, str(n), n * DAY)
    assert client.durable.clean_up(MailTask, older_than=DAY, limit=3) == CleanedUp(3, 3)
    client.session.commit()
    assert left(engine) == {tasks[0]} and left(engine, MailTask.Event.name) == {"2"}


def test_history_checkpoints_and_waits_go_with_their_task_and_only_these(engine):
    with Session(engine) as session, session.begin():
        for age in (2 * DAY, HOUR):
            task = task_factory(MailTask, session)(failed=True, attempt=3, finished_at=ago(age))
            checkpoint_factory(MailTask, session)(task=task, name="step")
            wait_factory(MailTask, session)(task=task)
    assert clean(engine).tasks == 1
    [young] = left(engine)
    for sibling, number in ((MailTask.Run, 3), (MailTask.Checkpoint, 1), (MailTask.Wait, 1)):
        assert left(engine, sibling.task_id) == {young}
        with Session(engine) as session:
            assert session.scalar(select(func.count()).select_from(sibling)) == number


def test_other_queues_are_not_touched(engine):
    other = made(engine, BillingTask, completed=True, finished_at=ago(2 * DAY))
    over(engine)
    assert clean(engine) == CleanedUp(1, 0) and left(engine, BillingTask.id) == {other}


def test_deleted_tasks_leave_the_session_too(engine):
    old = over(engine)
    with Session(engine) as session, session.begin():
        task = session.get(MailTask, old)
        Durable(session).clean_up(MailTask, older_than=DAY)
        assert task not in session and session.get(MailTask, old) is None


def test_what_cannot_work_is_refused(client):
    for wrong in ({"older_than": -DAY}, {"older_than": 3}, {"older_than": DAY, "limit": 0}):
        with pytest.raises(InvalidOptions):
            client.durable.clean_up(MailTask, **wrong)


# What stays


@pytest.mark.parametrize("state", ["pending", "running", "sleeping", *ENDS])
@pytest.mark.parametrize("model", [MailTask, BillingTask])
def test_a_child_stays_until_its_parent_has_ended_that_long_ago(engine, state, model):
    parent = made(engine, model, state=state)
    child = over(engine, parent_queue=model.__queue__, parent_id=parent)
    assert clean(engine) == CleanedUp(0, 0) and child in left(engine)
    change_of(engine, model, parent, state="failed", finished_at=ago(2 * DAY))
    assert clean(engine).tasks == (2 if model is MailTask else 1) and child not in left(engine)


def change_of(engine: Engine, model: Any, task_id: UUID, **values: Any) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(model).where(model.id == task_id).values(**values))


def test_a_child_without_a_parents_row_goes(engine):
    over(engine, parent_queue="mail", parent_id=UUID(int=1))
    over(engine, parent_queue="of another application", parent_id=UUID(int=1))
    assert clean(engine).tasks == 2


@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize("model", [MailTask, BillingTask])
def test_a_task_that_a_waiting_one_joins_stays(engine, model, met):
    joined = over(engine, awaited=True)
    other = over(engine, awaited=True)
    with Session(engine) as session, session.begin():
        wait = wait_factory(model, session)(
            event_name=f"$task:{joined}", event_queue="mail", settled=met, step="join"
        )
        wait_factory(model, session)(event_name=f"$task:{other}", event_queue="billing")
        joiner = wait.task_id
    assert clean(engine).tasks == 1 and joined in left(engine)
    with Session(engine) as session, session.begin():
        session.delete(session.get(model, joiner))
    assert clean(engine).tasks == 1


@pytest.mark.parametrize("met", [False, True])
def test_awaited_event_is_kept(engine, met):
    for name in ("waited for", "in another queue", "too late", "by nobody"):
        event(engine, name, dropped=name == "too late")
    with Session(engine) as session, session.begin():
        wait_factory(MailTask, session)(event_name="waited for", settled=met)
        wait_factory(MailTask, session)(event_name="too late", settled=met)
        wait_factory(MailTask, session)(event_name="in another queue", event_queue="billing", settled=met)
    assert clean(engine) == CleanedUp(0, 3)
    assert left(engine, MailTask.Event.name) == {"waited for"}


def test_what_a_task_was_woken_for_stays_until_it_has_run(engine):
    """A queue that was paused for longer than its retention: the waits of the woken are gone, the event isn't read."""
    event(engine, "before it started", 9 * DAY)
    event(engine, "after", 5 * DAY)
    joined = over(engine, 5 * DAY, awaited=True)
    earlier = over(engine, 9 * DAY, awaited=True)
    nobodys = over(engine, 5 * DAY)
    woken = made(
        engine,
        state="pending",
        started=True,
        first_started_at=ago(7 * DAY),
        available_at=ago(5 * DAY),
        token=3,
    )
    made(engine, state="pending", available_at=ago(20 * DAY))  # was never started: it has read nothing yet
    assert clean(engine) == CleanedUp(2, 1)
    assert left(engine, MailTask.Event.name) == {"after"}
    assert joined in left(engine) and not {earlier, nobodys} & left(engine)
    change(engine, [woken], state="sleeping", available_at=None)  # it has run, and awaits something else
    assert clean(engine) == CleanedUp(1, 1)


def test_task_referenced_by_application_rows_is_kept(engine):
    kept = made(engine, BillingTask, completed=True, finished_at=ago(3 * DAY))
    made(engine, BillingTask, completed=True, finished_at=ago(2 * DAY))
    with Session(engine) as session, session.begin():
        session.execute(insert(Invoice).values(id=1, task_id=kept))
    assert clean(engine, BillingTask, limit=1).tasks == 1 and left(engine, BillingTask.id) == {kept}
    with Session(engine) as session, session.begin():
        session.execute(update(Invoice).values(task_id=None))
    assert clean(engine, BillingTask).tasks == 1


def test_locked_rows_are_kept_and_not_waited_for(engine):
    locked, free = over(engine, 3 * DAY), over(engine)
    with Session(engine) as holder, holder.begin():
        holder.execute(select(MailTask.id).where(MailTask.id == locked).with_for_update(key_share=True))
        assert clean(engine, limit=1).tasks == 1 and left(engine) == {locked}
    assert free not in left(engine) and clean(engine).tasks == 1


def test_a_task_that_is_just_being_retried_stays(engine, session):
    """Its row is locked, and active once that is over."""
    task = over(engine, state="failed")
    session.execute(
        update(MailTask).where(MailTask.id == task).values(state="pending", finished_at=None)
    )  # and its transaction goes on
    assert clean(engine) == CleanedUp(0, 0)
    session.commit()
    assert clean(engine) == CleanedUp(0, 0) and left(engine) == {task}


@pytest.mark.pooled(connections=3, reason="who locks, who waits for that, who looks")
def test_spawn_waits_for_the_deletion_of_its_keys_holder(engine, session):
    over(engine, idempotency_key="k", hold="forever")
    assert Durable(session).clean_up(MailTask, older_than=DAY).tasks == 1
    with Session(engine) as rival, rival.begin():
        pid = pid_of(rival)
        spawned = in_thread(Durable(rival).spawn, send_mail.call(to="x"), idempotency_key="k")
        wait_until_blocked(engine, pid)
        session.commit()
        assert spawned.result(20).created


# What it costs, and what workers clean


def test_a_clean_up_is_two_statements_and_a_savepoint(engine):
    over(engine)
    with Session(engine) as session, session.begin():
        session.connection()
        with statements(session.connection()) as sent:
            Durable(session).clean_up(MailTask, older_than=DAY)
    assert ["DELETE FROM" in text for text in sent if "SAVEPOINT" not in text] == [True, True]


@pytest.mark.owner
def test_retentions_are_read_in_one_statement(engine):
    with Session(engine) as session, session.begin():
        queue_factory(MailTask, session)(retention=DAY)
        queue_factory(BillingTask, session)(paused=True)
    with Session(engine) as session, statements(engine) as sent:
        assert cleanup.retentions(session, [MailTask, BillingTask]) == {MailTask: DAY}
        assert cleanup.retentions(session, [BillingTask]) == {}
    assert len(sent) == 2


def test_twenty_clean_ups_in_one_session(engine):
    with Session(engine) as session, session.begin():
        for _ in range(20):
            Durable(session).spawn(charge.call(order_id=1))
            assert Durable(session).clean_up(BillingTask, older_than=DAY) == CleanedUp(0, 0)
    assert len(spawn(engine)) == 1
