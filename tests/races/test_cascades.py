"""B20: who ends a family and who belongs to it meet at every moment, and nobody deadlocks.

The references deadlock in up to 96 of 100 such races. Each race here is between transactions on sessions of their own,
in threads that start together, after a few statements more or less; the families are made beforehand.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sa_durable import Cancelled
from sa_durable.services import cancellation, child_tasks, maintenance, runs
from sa_durable.values import Claim, TaskError
from tests.races.families import (
    RACES,
    attempt,
    families,
    history_agrees,
    nothing_is_left,
    put_to_sleep,
    running,
    states,
    transaction,
)
from tests.races.racing import no_deadlock, race
from tests.services.waiting import ends, tick, wait
from tests.shop import BillingTask, MailTask, charge

pytestmark = pytest.mark.timeout(120 + RACES)
FAILURE = TaskError("ValueError", "no")
dice = random.Random(20)


def stroll(engine: Engine, steps: int) -> None:
    """Come a little later: so many statements."""
    with Session(engine) as session:
        for _ in range(steps):
            session.execute(select(1))


def later(engine: Engine, most: int, act: Callable[[], Any]) -> Callable[[], Any]:
    steps = dice.randrange(most)

    def go() -> Any:
        stroll(engine, steps)
        return act()

    return go


class Turns:
    """Of two that race, one comes first in the first round, and the other one in the second: of both it is known then how
    it goes. In all other rounds nobody knows."""

    def __init__(self) -> None:
        self._done = (Event(), Event())

    def take(self, number: int, caller: int, act: Callable[[], Any]) -> Callable[[], Any]:
        if number >= 2:
            return act

        def go() -> Any:
            if caller != number:
                assert self._done[number].wait(60)
                return act()
            try:
                return act()
            finally:
                self._done[number].set()

        return go


def cancel(engine: Engine, model: Any, claim: Claim) -> bool:
    return transaction(engine, cancellation.cancel, model, claim.task_id)


@pytest.mark.parametrize("waits", [True, False], ids=["waiting for locks", "passing over them"])
def test_a_parent_is_cancelled_while_its_child_completes(engine, waits):
    born = families(engine, RACES)
    asleep = born[::2]  # every other parent sleeps, and is woken meanwhile
    joins = {parent.task_id: [(f"$task:{child.task_id}", "billing")] for parent, child in asleep}
    put_to_sleep(engine, [parent for parent, _ in asleep], joins)

    def complete(child: Claim) -> str:
        if waits:
            return attempt(engine, runs.complete, BillingTask, child, "done")
        ended = [runs.Completed(child.task_id, child.token, '"done"')]
        stored = transaction(engine, runs.complete_many, BillingTask, ended)
        tick(engine)
        return "done" if stored.reached else "cancelled"

    turns = Turns()

    def prepare(number: int, caller: int) -> Callable[[], Any]:
        parent, child = born[number]
        if caller == 0:
            return turns.take(number, caller, lambda: cancel(engine, MailTask, parent))
        return turns.take(number, caller, later(engine, 24, lambda: complete(child)))

    with no_deadlock(engine):
        outcomes = race(RACES, 2, prepare)
        nothing_is_left(engine)
    assert all(cancelled for cancelled, _ in outcomes)
    assert set(states(engine, MailTask).values()) == {"cancelled"}
    final, ended = states(engine, BillingTask), {"done": "completed", "cancelled": "cancelled"}
    for (_, child), (_, outcome) in zip(born, outcomes, strict=True):
        assert final[child.task_id] == ended[outcome]
    assert set(final.values()) == {"completed", "cancelled"}
    history_agrees(engine, BillingTask)


def test_a_parent_is_cancelled_while_it_goes_to_sleep_for_its_child(engine):
    born = families(engine, RACES)

    def join(parent: Claim, child: Claim) -> str:
        try:
            found = wait(engine, parent, ends(child))
        except Cancelled:
            return "cancelled"
        return "asleep" if found is None else found.value[0]["state"]

    turns = Turns()

    def prepare(number: int, caller: int) -> Callable[[], Any]:
        parent, child = born[number]
        if caller == 0:
            return turns.take(number, caller, later(engine, 12, lambda: cancel(engine, MailTask, parent)))
        return turns.take(number, caller, lambda: join(parent, child))

    with no_deadlock(engine):
        outcomes = race(RACES, 2, prepare)
        nothing_is_left(engine)
    assert {outcome for _, outcome in outcomes} == {"asleep", "cancelled"}
    for model in (MailTask, BillingTask):
        assert set(states(engine, model).values()) == {"cancelled"}
        history_agrees(engine, model)


def test_a_parent_is_cancelled_while_it_spawns(engine):
    """No child survives its parent, and none is there whose parent doesn't know of it."""
    parents = running(engine, MailTask, RACES)

    def spawn(parent: Claim) -> str:
        calls = [charge.call(1), charge.call(2)]
        return attempt(engine, child_tasks.spawn, MailTask, parent, "$spawn", calls, keywords={})

    turns = Turns()

    def prepare(number: int, caller: int) -> Callable[[], Any]:
        if caller == 0:
            end = later(engine, 12, lambda: cancel(engine, MailTask, parents[number]))
            return turns.take(number, caller, end)
        return turns.take(number, caller, lambda: spawn(parents[number]))

    with no_deadlock(engine):
        outcomes = race(RACES, 2, prepare)
    assert {outcome for _, outcome in outcomes} == {"done", "cancelled"}
    spawned = sum(outcome == "done" for _, outcome in outcomes)
    assert Counter(states(engine, BillingTask).values()) == {"cancelled": 2 * spawned}
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(MailTask.Checkpoint)) == spawned


def test_a_family_of_three_generations_is_ended_from_every_side_at_once(engine):
    """The grandparent is cancelled, the parent fails, two children complete, time is over for the third, and the sweeps
    pass by."""
    races = RACES // 4
    grandparents = running(engine, BillingTask, races)
    parents = running(engine, MailTask, races, grandparents)
    litters = [running(engine, BillingTask, races, parents) for _ in range(3)]
    first, second, late = litters
    joins = {
        parent.task_id: [(f"$task:{child.task_id}", "billing") for child in two]
        for parent, *two in zip(parents[::2], first[::2], second[::2], strict=True)
    }
    put_to_sleep(engine, parents[::2], joins)
    overdue = update(BillingTask).where(BillingTask.id.in_([child.task_id for child in late]))
    transaction(engine, lambda s: s.execute(overdue.values(cancel_at=func.now() - timedelta(1))))

    def sweep() -> None:
        for model in (MailTask, BillingTask):
            transaction(engine, maintenance.sweep_overdue, model, limit=3)
            transaction(engine, maintenance.sweep_expired, model, limit=3)
        tick(engine)

    def fail(parent: Claim) -> None:
        ended = runs.failed(parent, FAILURE, retryable=False)
        transaction(engine, runs.fail_root, MailTask, ended)

    def complete(*young: Claim) -> None:
        ended = [runs.Completed(child.task_id, child.token, "null") for child in young]
        transaction(engine, runs.complete_many, BillingTask, ended)

    def prepare(number: int, caller: int) -> Callable[[], Any]:
        acts: tuple[Callable[[], Any], ...] = (
            lambda: cancel(engine, BillingTask, grandparents[number]),
            lambda: fail(parents[number]),
            lambda: complete(first[number], second[number]),
            sweep,
        )
        return later(engine, 8, acts[caller])

    with no_deadlock(engine):
        race(races, 4, prepare)
        nothing_is_left(engine)
    mail, billing = states(engine, MailTask), states(engine, BillingTask)
    assert {billing[grandparent.task_id] for grandparent in grandparents} == {"cancelled"}
    assert set(mail.values()) <= {"cancelled", "failed"}
    assert {billing[child.task_id] for litter in litters for child in litter} <= {"cancelled", "completed"}
    for model in (MailTask, BillingTask):
        history_agrees(engine, model)
