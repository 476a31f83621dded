"""Statements that lock several rows, held in their middle: by a third transaction that has the row between."""

from __future__ import annotations

from concurrent.futures import as_completed
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import events
from tests.consistency import complaints
from tests.races.overlapping import Stage, overlap, stage
from tests.races.racing import no_deadlock
from tests.races.starting_states import KEYS, empty, over, scene, tasks, wait
from tests.services.waiting import rows, tick
from tests.shop import BillingTask, MailTask, charge

pytestmark = pytest.mark.service


def meet_inside(here: Stage, gate: Session, *acts) -> list[bool]:
    """Let each act go until it waits, if it does, and then open the gate. Returns who had to wait.

    Either may be done first then, and the other one may wait until that has committed.
    """
    with here.part(acts[0]) as first, here.part(acts[1]) as second:
        waited = [here.until_still(first), here.until_still(second)]
        gate.rollback()
        parts = {part.outcome: part for part in (first, second)}
        for done in as_completed(parts, 20):
            done.result()
            parts[done].session.commit()
    return waited


def test_clean_up_passes_over_the_waits_that_are_just_being_settled(engine):
    """The cascade of a foreign key locks rows in an order of its own: it deadlocked with whoever settled them."""
    with engine.begin() as connection:
        claims = tasks(connection, MailTask, [over("completed", result=1) for _ in range(3)])
        wait(connection, MailTask, [(claim, "e", "mail") for claim in claims[::-1]])
    with Session(engine) as session, session.begin():
        Durable(session).emit_event(MailTask, "e", 1)
    with no_deadlock(engine), stage(engine) as here, Session(engine) as gate:
        middle = select(MailTask.Wait).where(MailTask.Wait.task_id == claims[1].task_id)
        gate.execute(middle.with_for_update())
        waited = meet_inside(
            here,
            gate,
            lambda session: Durable(session).clean_up(MailTask, older_than=timedelta(0)),
            lambda session: events.settle(session, MailTask, limit=10),
        )
    assert waited == [False, True]
    tick(engine)
    with Session(engine) as session, session.begin():
        Durable(session).clean_up(MailTask, older_than=timedelta(0))
    assert rows(engine) == [] and complaints(engine, MailTask, BillingTask) == []


@pytest.mark.parametrize("first", ["batch", "other batch", "cascade"])
def test_paused_batches_and_cascades_finish_one_after_the_other(engine, first):
    """A batch waits for the second of three keys, whose holder somebody has; another one, in the opposite order, comes."""
    made = scene(engine, "running")

    def batch(order: int):
        calls = [charge.call(2).using(idempotency_key=key) for key in ("a", KEYS[1], "z")]
        return lambda session: Durable(session).spawn_many(calls[::order])

    acts = {
        "batch": batch(1),
        "other batch": batch(-1),
        "cascade": lambda session: Durable(session).cancel(MailTask, made.root.task_id),
    }
    for second in sorted(acts.keys() - {first}):
        empty(engine)
        made = scene(engine, "running")
        with no_deadlock(engine), stage(engine) as here, Session(engine) as gate:
            ended = update(BillingTask.__table__).where(BillingTask.id == made.twins[1].task_id)
            gate.execute(ended.values(idempotency_key="gone"))
            assert meet_inside(here, gate, acts[first], acts[second]) == [True, True]
        assert complaints(engine, BillingTask, MailTask) == []


def test_two_that_take_rows_in_opposite_orders_are_found_out(engine):
    """These tests can fail: so it looks where there is a deadlock."""
    made = scene(engine, "running")

    def write(*twins):
        def act(session: Session) -> None:
            for twin in twins:
                session.execute(update(BillingTask).where(BillingTask.id == twin.task_id).values(priority=1))

        return act

    with pytest.raises(Exception, match="deadlock detected"), stage(engine) as here:
        overlap(here, write(*made.twins), write(*made.twins[::-1]), hold_after=1)
    found = pytest.raises(Exception, match="deadlock detected")
    with pytest.raises(AssertionError), no_deadlock(engine), stage(engine) as here, found:
        overlap(here, write(*made.twins), write(*made.twins[::-1]), hold_after=1)
