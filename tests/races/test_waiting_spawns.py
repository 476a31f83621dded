"""A2: whoever comes second waits for the first one's transaction to end, and gets what that one left."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, wait

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.shop import BillingTask, charge
from tests.waiting import in_blocked_thread

pytestmark = pytest.mark.service

HOW = {
    "spawn": lambda session, n: Durable(session).spawn(charge.call(n), idempotency_key="k"),
    "spawn_many": lambda session, n: Durable(session).spawn_many([charge.call(n)], idempotency_key="k")[0],
}


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(BillingTask))


def overlap(engine, session, rival, spawn, end):
    """What two spawns return, of which the second waits until `end` ends the transaction of the first."""
    first = spawn(session, 1)
    waiting = in_blocked_thread(engine, rival, spawn, 2)
    end()
    return first, waiting.result(20)


@pytest.mark.parametrize("how", HOW)
def test_the_second_waits_for_the_first_and_returns_its_task(engine, session, rival, how):
    winner, found = overlap(engine, session, rival, HOW[how], session.commit)
    assert (found.task_id, found.run_id, found.attempt) == (winner.task_id, winner.run_id, 1)
    assert (found.created, found.params_match) == (False, False)
    rival.commit()
    assert count(session) == 1


@pytest.mark.parametrize("how", HOW)
def test_the_second_spawns_its_own_when_the_first_rolls_back(engine, session, rival, how):
    lost, own = overlap(engine, session, rival, HOW[how], session.rollback)
    assert (own.created, own.task_id != lost.task_id) == (True, True)
    rival.commit()
    assert [task.params for task in session.scalars(select(BillingTask))] == [{"order_id": 2}]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("how", HOW)
def test_the_same_holds_inside_savepoints(engine, session, rival, how, end):  # oban#1087, #1093
    with session.begin_nested(), session.begin_nested():
        winner = HOW[how](session, 1)
    savepoint = rival.begin_nested()
    waiting = in_blocked_thread(engine, rival, HOW[how], 2)
    getattr(session, end)()
    found = waiting.result(20)
    assert found.created is (end == "rollback")
    assert (found.task_id == winner.task_id) is (end == "commit")
    savepoint.commit()
    rival.commit()
    assert count(session) == 1


def test_a_rolled_back_savepoint_lets_the_second_go_on_at_once(engine, session, rival):
    # Not so if there was another savepoint inside it, as spawn_many has: PostgreSQL lets those who wait for a
    # released savepoint wait for the whole transaction.
    savepoint = session.begin_nested()
    HOW["spawn"](session, 1)
    waiting = in_blocked_thread(engine, rival, HOW["spawn"], 2)
    savepoint.rollback()  # its transaction stays open
    assert waiting.result(20).created
    rival.commit()
    assert not HOW["spawn"](session, 1).created
    session.commit()
    assert count(session) == 1


def test_a_savepoint_of_the_second_can_be_rolled_back_after_it_spawned(engine, session, rival):
    HOW["spawn"](session, 1)
    savepoint = rival.begin_nested()
    waiting = in_blocked_thread(engine, rival, HOW["spawn"], 2)
    session.rollback()
    assert waiting.result(20).created
    savepoint.rollback()
    assert HOW["spawn"](rival, 3).created
    rival.commit()
    assert [task.params for task in session.scalars(select(BillingTask))] == [{"order_id": 3}]


def test_of_two_that_wait_one_spawns_and_the_other_returns_its_task(engine, session, rival):
    with Session(engine) as third:
        HOW["spawn"](session, 1)
        waiting = {}
        for waiter in (rival, third):
            waiting[in_blocked_thread(engine, waiter, HOW["spawn"], 2)] = waiter
        session.rollback()
        [first], [second] = wait(waiting, timeout=20, return_when=FIRST_COMPLETED)
        assert first.result().created
        waiting[first].commit()
        assert second.result(20).task_id == first.result().task_id
        assert not second.result().created
    assert count(session) == 1


def test_other_keys_and_keyless_spawns_do_not_wait(session, rival):
    HOW["spawn"](session, 1)
    durable = Durable(rival)
    assert durable.spawn(charge.call(1), idempotency_key="other").created
    assert durable.spawn(charge.call(1)).created
    assert durable.find_by_key(BillingTask, "k") is None  # looking never waits
    rival.commit()
