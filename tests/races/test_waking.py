"""B20: an event for sixty, while everybody sweeps: nobody deadlocks, and nobody sleeps on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sa_durable import Cancelled
from sa_durable.services import cancellation, claims, events, maintenance, runs
from sa_durable.values import Claim
from tests.races.families import RACES, nothing_is_left, put_to_sleep, running, states, transaction
from tests.races.racing import no_deadlock, race
from tests.services.waiting import emit, event, wait
from tests.shop import MailTask

pytestmark = pytest.mark.timeout(120 + RACES)
WAITERS = 60
MINUTE = timedelta(minutes=1)


class Crowd:
    """Sixty tasks that sleep for two events of their own, and what others do about them."""

    def __init__(self, engine: Engine, number: int, dice: random.Random) -> None:
        self.engine = engine
        self.names = [f"a{number}", f"b{number}"]
        self.claims = running(engine, MailTask, WAITERS)
        shuffled = dice.sample(self.claims, WAITERS)
        awaited = {claim.task_id: [(name, "mail") for name in self.names] for claim in shuffled}
        put_to_sleep(engine, self.claims, awaited)
        timed = [claim.task_id for claim in self.claims[::2]]
        due = update(MailTask).where(MailTask.id.in_(timed)).values(available_at=func.now())
        transaction(engine, lambda session: session.execute(due))

    def emit(self) -> None:
        for name in reversed(self.names):
            emit(self.engine, name, name)

    def sweep(self) -> None:
        for _ in range(2):
            transaction(self.engine, events.settle, MailTask, limit=500)
            transaction(self.engine, maintenance.promote, MailTask, limit=20)
            transaction(self.engine, events.wake, MailTask, limit=20)
            transaction(self.engine, events.forget_idle, MailTask, limit=500)

    def run(self) -> None:
        """Some of those that are woken look for their events, as their runs do, and end."""
        mine = {claim.task_id for claim in self.claims}
        terms = {"names": ["send"], "worker": "w", "lease": MINUTE, "limit": 3}
        for claim in transaction(self.engine, claims.claim, MailTask, **terms):
            try:
                if claim.task_id in mine:
                    self._run(claim)
                else:
                    transaction(self.engine, claims.release, MailTask, {claim.task_id: claim.token})
            except Cancelled:
                pass

    def _run(self, claim: Claim) -> None:
        for name in self.names:
            if wait(self.engine, claim, event(name), step=f"$await:{name}") is None:
                return
        transaction(self.engine, runs.complete, MailTask, claim, None)

    def cancel(self) -> None:
        for claim in self.claims[::10]:
            transaction(self.engine, cancellation.cancel, MailTask, claim.task_id)


def test_sixty_waiters_are_woken_while_everybody_sweeps(engine):
    races = max(1, RACES // 5)
    dice = random.Random(20)
    crowds: dict[int, Crowd] = {}

    def prepare(number: int, caller: int) -> Callable[[], Any]:
        if caller == 0:
            crowds[number] = Crowd(engine, number, dice)

        def act() -> None:
            crowd = crowds[number]
            (crowd.emit, crowd.sweep, crowd.sweep, crowd.run, crowd.cancel)[caller]()

        return act

    with no_deadlock(engine):
        race(races, 5, prepare)
        nothing_is_left(engine)
    final = Counter(states(engine, MailTask).values())
    assert set(final) <= {"pending", "completed", "cancelled"} and sum(final.values()) == races * WAITERS
    with Session(engine) as session:
        saved = MailTask.Checkpoint
        values = session.execute(select(saved.name, saved.value)).all()
    assert all(value == {"payload": name.removeprefix("$await:")} for name, value in values)
