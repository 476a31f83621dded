"""A7: batches that share keys, in whatever order each was written down."""

from __future__ import annotations

from random import Random

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.races.racing import no_deadlock, race
from tests.services.observed import just_before
from tests.shop import BillingTask, MailTask, charge, send_mail
from tests.waiting import in_thread, pid_of, wait_until_blocked

pytestmark = pytest.mark.service


def batch(keys, handler=charge):
    return [handler.call(1 if handler is charge else "ada").using(idempotency_key=key) for key in keys]


@pytest.mark.parametrize("columns", [None, {"order_id": None}], ids=["unnest", "executemany"])
def test_two_batches_in_opposite_order_get_the_same_tasks_and_no_deadlock(engine, columns):  # A7
    def prepare(number: int, who: int):
        keys = [f"{number} {i}" for i in range(30)][:: -1 if who % 2 else 1]

        def step():
            with Session(engine) as session, session.begin():
                spawned = Durable(session).spawn_many(batch(keys), columns=columns)
                return {key: s.task_id for key, s in zip(keys, spawned, strict=True)}

        return step

    with no_deadlock(engine):
        for results in race(20, 2, prepare):
            assert results[0] == results[1]
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(BillingTask)) == 20 * 30


def test_random_batches_and_single_spawns_over_two_queues_agree(engine):  # A7
    def prepare(number: int, who: int):
        draw = Random(f"{number} {who}")
        keys = draw.sample([f"{number} {i}" for i in range(12)], 8)
        calls = [*batch(keys), *batch(keys, send_mail)]
        draw.shuffle(calls)

        def step():
            with Session(engine) as session, session.begin():
                durable = Durable(session)
                spawned = [durable.spawn(calls[0])] if who == 0 else durable.spawn_many(calls)
                if draw.random() < 0.2:
                    session.rollback()
                    return []
                return [
                    (s.model, c.options["idempotency_key"], s.task_id)
                    for c, s in zip(calls, spawned, strict=False)
                ]

        return step

    with no_deadlock(engine):
        outcomes = race(20, 6, prepare)
    got = {(model, key, id_) for callers in outcomes for caller in callers for model, key, id_ in caller}
    with Session(engine) as session:
        stored = {
            (model, key, id_)
            for model in (BillingTask, MailTask)
            for key, id_ in session.execute(select(model.idempotency_key, model.id))
        }
    assert got == stored
    assert len({(model, key) for model, key, _ in stored}) == len(stored)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_batch_waits_for_another_ones_key_and_then_goes_on(engine, session, rival, end):
    first = Durable(session).spawn_many(batch("bc"))
    pid = pid_of(rival)
    waiting = in_thread(Durable(rival).spawn_many, batch("dcba"))
    wait_until_blocked(engine, pid)
    getattr(session, end)()
    found = waiting.result(20)
    rival.commit()
    taken = end == "commit"
    assert [s.created for s in found] == [True, not taken, not taken, True]
    if taken:
        assert [s.task_id for s in found[1:3]] == [s.task_id for s in first][::-1]


def test_key_taken_during_the_batchs_select_belongs_to_its_taker(session, rival):
    [old] = Durable(session).spawn_many(batch("k"))
    session.commit()

    def change_hands():
        Durable(session).cancel(old)
        change_hands.new = Durable(session).spawn(batch("k")[0])
        session.commit()

    with just_before(rival, "SELECT", change_hands):
        [found] = Durable(rival).spawn_many(batch("k"))
    rival.commit()
    assert (found.created, found.task_id) == (False, change_hands.new.task_id)
