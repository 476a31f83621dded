"""A5, A10: the holder changes while somebody spawns its key."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_durable import Durable, TaskState
from sa_durable.telemetry import on_spawn, remove_hook
from tests.races.racing import no_deadlock, race
from tests.services import state_changes
from tests.services.observed import just_before
from tests.shop import BillingTask, charge, send_mail
from tests.waiting import in_blocked_thread, in_thread, pid_of, wait_until_blocked

pytestmark = pytest.mark.service

PASSED = {"hold": "succeeded", "key_ttl": timedelta(microseconds=1)}


def spawn(session: Session, n: int = 1, **options):
    return Durable(session).spawn(charge.call(n), idempotency_key="k", **options)


def holder(session: Session, life: str = "pending", **options):
    """A committed task with key "k"."""
    spawned = spawn(session, **options)
    state_changes.live(session, spawned.task_id, life)
    session.commit()
    return spawned


def state(engine, spawned) -> TaskState:
    with Session(engine) as session:
        return Durable(session).result(spawned).state


# A5


def test_a_queued_key_passes_on_while_its_holders_start_sleep_and_retry(engine):
    """Workers and spawners at once: there is always one that waits, and no unique violation, ever."""

    def prepare(number: int, who: int):
        def spawner():
            with Session(engine) as session, session.begin():
                return spawn(session, hold="queued")

        def worker():
            with Session(engine) as session, session.begin():
                live = select(BillingTask.id, BillingTask.state).where(BillingTask.finished_at.is_(None))
                for id_, at in session.execute(live.limit(3).with_for_update(skip_locked=True)):
                    match at:
                        case "pending":
                            state_changes.claim(session, id_)
                        case "sleeping":
                            state_changes.wake(session, id_)
                        case "running":
                            steps = (
                                state_changes.sleep,
                                state_changes.retry_later,
                                state_changes.retry_at_once,
                                state_changes.complete,
                            )
                            steps[(number + id_.int) % 4](session, id_)

        return spawner if who % 2 else worker

    with no_deadlock(engine):
        race(30, 6, prepare)
    with Session(engine) as session:
        unstarted = BillingTask.first_started_at.is_(None)
        assert len(session.scalars(select(BillingTask).where(unstarted)).all()) <= 1
        assert len(session.scalars(select(BillingTask)).all()) > 10


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_spawn_waits_for_a_claim_of_its_holder_and_then_knows(engine, session, rival, end):
    first = holder(session, hold="queued")
    state_changes.claim(session, first.task_id)
    waiting = in_blocked_thread(engine, rival, spawn, hold="queued")
    getattr(session, end)()
    assert waiting.result(20).created is (end == "commit")
    rival.commit()


def completing(session, task):
    """Returns what completes the task, and commits."""

    def complete():
        state_changes.complete(session, task.task_id)
        session.commit()

    return complete


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_spawn_waits_for_its_holders_end_and_then_knows(engine, session, rival, end):
    first = holder(session, "running")
    state_changes.complete(session, first.task_id)
    waiting = in_blocked_thread(engine, rival, spawn)
    getattr(session, end)()
    assert waiting.result(20).created is (end == "commit")
    rival.commit()


def test_holder_leaving_between_insert_and_select_frees_the_key(session, rival):
    with just_before(rival, "SELECT", completing(session, holder(session, "running"))):
        assert spawn(rival).created
    rival.commit()


def test_holder_leaving_during_a_batch_frees_the_key(session, rival):
    calls = [charge.call(1).using(idempotency_key=key) for key in ("a", "k", "z")]
    with just_before(rival, "SELECT", completing(session, holder(session, "running"))):
        assert [s.created for s in Durable(rival).spawn_many(calls)] == [True, True, True]
    rival.commit()


# An expired holder


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_of_two_that_find_the_key_expired_one_takes_it(engine, session, rival, end):
    old = holder(session, "completed", **PASSED)
    first = spawn(session, 2)
    assert first.created
    waiting = in_blocked_thread(engine, rival, spawn, 3)
    getattr(session, end)()
    second = waiting.result(20)
    assert second.created is (end == "rollback")
    assert (second.task_id == first.task_id) is (end == "commit")
    assert second.task_id != old.task_id
    rival.commit()


def test_expired_key_taken_by_another_spawn_belongs_to_it(session, rival):
    holder(session, "completed", **PASSED)

    def overtake():
        overtake.task = spawn(session, 2)
        session.commit()

    with just_before(rival, "UPDATE", overtake):
        found = spawn(rival, 3)
    assert (found.created, found.task_id) == (False, overtake.task.task_id)
    rival.commit()


def test_many_that_find_the_key_expired_get_one_new_task(engine, session):
    old = {}
    for number in range(12):
        spawned = Durable(session).spawn(charge.call(1), idempotency_key=f"{number}", **PASSED)
        state_changes.live(session, spawned.task_id, "completed")
        old[number] = spawned.task_id
    session.commit()

    def prepare(number: int, who: int):
        def step():
            with Session(engine) as session, session.begin():
                durable, call = Durable(session), charge.call(1).using(idempotency_key=f"{number}")
                return durable.spawn(call) if who % 2 else durable.spawn_many([call])[0]

        return step

    with no_deadlock(engine):
        for number, found in enumerate(race(12, 8, prepare)):
            assert len({s.task_id for s in found} - {old[number]}) == 1
            assert sum(s.created for s in found) == 1


# release_key


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_spawn_waits_for_a_release_of_its_key(engine, session, rival, end):
    first = holder(session)
    assert Durable(session).release_key(BillingTask, "k")
    waiting = in_blocked_thread(engine, rival, spawn)
    getattr(session, end)()
    found = waiting.result(20)
    assert found.created is (end == "commit")
    assert (found.task_id == first.task_id) is (end == "rollback")
    rival.commit()


def test_key_released_between_insert_and_select_is_free(session, rival):
    holder(session)

    def release():
        Durable(session).release_key(BillingTask, "k")
        session.commit()

    with just_before(rival, "SELECT", release):
        assert spawn(rival).created
    rival.commit()


def test_a_release_doesnt_free_the_key_of_a_task_that_came_later(engine, session, rival):
    first = holder(session, "running")
    state_changes.complete(session, first.task_id)
    later = spawn(session)
    pid = pid_of(rival)
    waiting = in_thread(Durable(rival).release_key, BillingTask, "k")
    wait_until_blocked(engine, pid)  # on the first task's row
    session.commit()
    assert waiting.result(20) is False  # READ COMMITTED: the later one wasn't there when it began
    rival.commit()
    assert spawn(session).task_id == later.task_id


# on_duplicate="update"


def test_an_update_that_comes_after_the_claim_touches_nothing(session, rival):
    first = holder(session)

    def claim():
        state_changes.claim(session, first.task_id)
        session.commit()

    with just_before(rival, "UPDATE", claim):
        found = spawn(rival, 2, on_duplicate="update", priority=9)
    assert (found.task_id, found.created, found.state) == (first.task_id, False, TaskState.RUNNING)
    assert found.params_match is False
    assert (found.task.params, found.task.priority) == ({"order_id": 1}, 0)
    rival.commit()


def test_an_update_waits_for_an_open_claim_and_then_touches_nothing(engine, session, rival):
    first = holder(session)
    state_changes.claim(session, first.task_id)
    waiting = in_blocked_thread(engine, rival, spawn, 2, on_duplicate="update")
    session.commit()
    found = waiting.result(20)
    assert (found.task_id, found.state, found.params_match) == (first.task_id, TaskState.RUNNING, False)
    rival.commit()


def test_update_whose_holder_disappeared_creates_one_task(session, rival):
    first, seen = holder(session), []

    def work():
        state_changes.live(session, first.task_id, "completed")
        session.commit()

    hook = on_spawn(seen.append)
    try:
        with just_before(rival, "UPDATE", work):
            assert spawn(rival, 2, on_duplicate="update").created
    finally:
        remove_hook(hook)
    rival.commit()
    assert [one.outcome for one in seen] == ["created"]  # nothing was replaced


def test_a_claim_skips_a_task_that_is_being_updated(session, rival):
    first = holder(session)
    spawn(session, 2, on_duplicate="update")
    due = select(BillingTask.id).where(BillingTask.state == "pending").with_for_update(skip_locked=True)
    assert rival.scalars(due).all() == []
    session.commit()
    assert rival.scalars(due).all() == [first.task_id]
    rival.rollback()


# on_duplicate="replace"


@pytest.mark.parametrize("life", ["pending", "running", "sleeping"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_no_third_caller_gets_in_between_the_cancelled_and_the_new_task(engine, session, rival, life, end):
    old = holder(session, life)
    child = Durable(session).spawn(send_mail.call("ada"))
    child.task.parent_queue, child.task.parent_id = "billing", old.task_id
    session.commit()
    new = spawn(session, 2, on_duplicate="replace")
    assert new.created
    waiting = in_blocked_thread(engine, rival, spawn, 3)
    getattr(session, end)()
    found = waiting.result(20)
    assert (found.created, found.task_id) == (False, new.task_id if end == "commit" else old.task_id)
    rival.commit()
    ended = {state(engine, old), state(engine, child)}
    assert (TaskState.CANCELLED in ended) is (end == "commit")
    assert len(ended) == 1 or end == "rollback"


def test_third_caller_between_cancel_and_spawn_waits_too(engine, session, rival):
    holder(session)
    pid, waiting = pid_of(session), []

    def come():  # the holder is cancelled, the new task isn't there yet
        waiting.append(in_thread(spawn, session, 3))
        wait_until_blocked(engine, pid)

    with just_before(rival, "INSERT INTO durable_billing_tasks", come, nth=2):
        new = spawn(rival, 2, on_duplicate="replace")
    rival.commit()
    found = waiting[0].result(20)
    assert (found.created, found.task_id) == (False, new.task_id)
    session.commit()


def test_of_two_that_replace_the_later_one_replaces_the_earlier_ones(engine, session, rival):
    old = holder(session)
    first = spawn(session, 2, on_duplicate="replace")
    waiting = in_blocked_thread(engine, rival, spawn, 3, on_duplicate="replace")
    session.commit()
    second = waiting.result(20)
    rival.commit()
    assert second.created
    assert [state(engine, s) for s in (old, first, second)] == ["cancelled", "cancelled", "pending"]


def test_a_replace_that_was_overtaken_by_another_replaces_that_one(engine, session, rival):
    old = holder(session)

    def overtake():
        overtake.task = spawn(session, 2, on_duplicate="replace")
        session.commit()

    # The first SELECT finds the holder, the third locks it.
    with just_before(rival, "SELECT", overtake, nth=3):
        new = spawn(rival, 3, on_duplicate="replace")
    rival.commit()
    assert [state(engine, s) for s in (old, overtake.task, new)] == ["cancelled", "cancelled", "pending"]


@pytest.mark.parametrize("how", ["spawn", "spawn_many"])
def test_replacing_a_holder_that_is_cleaned_up_is_no_error(engine, session, rival, how):
    holder(session, "completed", hold="forever")

    def clean_up():
        assert Durable(session).clean_up(BillingTask, older_than=timedelta(0)).tasks == 1
        session.commit()

    call, options = charge.call(2), {"idempotency_key": "k", "on_duplicate": "replace"}
    # The holder was found, and is looked up once more to be cancelled.
    with just_before(rival, "SELECT", clean_up, nth=2):
        if how == "spawn":
            new = Durable(rival).spawn(call, **options)
        else:
            [new] = Durable(rival).spawn_many([call], **options)
    rival.commit()
    assert new.created
    assert state(engine, new) == "pending"


def test_many_that_replace_leave_one_task_and_no_deadlock(engine):
    def prepare(number: int, who: int):
        def step():
            with Session(engine) as session, session.begin():
                return spawn(session, who, on_duplicate="replace" if who % 2 else "return")

        return step

    with no_deadlock(engine):
        race(10, 8, prepare)
    with Session(engine) as session:
        states = session.scalars(select(BillingTask.state)).all()
    assert states.count("pending") == 1
    assert set(states) == {"pending", "cancelled"}
