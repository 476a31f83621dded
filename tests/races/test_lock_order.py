"""Issue 6, point 3: every two things that can happen to a task, forced to overlap on the same rows, in both orders.

Nobody deadlocks, nobody sees another error than those that are documented, and what is left is consistent.
Every day the verbs of the issue meet, in the scene that matters most to both; `tests.races.sampling` says how to have more.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import Engine

from tests.consistency import complaints
from tests.races.operations import ACTS, NEVER_WAITS, VERBS, scenes_for
from tests.races.overlapping import Overlap, Stage, overlap, stage
from tests.races.racing import no_deadlock
from tests.races.sampling import FULL, SEED, WIDE, drawn, moments
from tests.races.starting_states import empty, scene
from tests.shop import BillingTask, MailTask

MET = ACTS if WIDE else VERBS
pytestmark = [pytest.mark.service, pytest.mark.timeout(3600 if WIDE else 300)]


@pytest.mark.parametrize("first", MET)
def test_overlapping_operations_neither_deadlock_nor_corrupt(engine, first):
    wrong: list[str] = []
    with no_deadlock(engine), stage(engine) as here:
        for second in MET:
            scenes = scenes_for(first, second)
            for where in scenes if FULL else scenes[:1]:
                if not drawn(first, second, where):
                    continue
                wrong += [
                    f"{second} in {where!r}, {what}" for what in _meet(engine, here, first, second, where)
                ]
        assert wrong == [], f"FAULTS_SEED={SEED}"  # before who deadlocked is forgotten


def _meet(engine: Engine, here: Stage, first: str, second: str, where: str) -> Iterator[str]:
    """What goes wrong in all ways in which two can meet."""
    met = partial(_overlap, engine, here, first, second, where)
    whole, wrong = met()
    yield from wrong
    yield from met(end="rollback")[1]
    for hold_after in moments(whole.sent) if whole else ():
        yield from met(hold_after=hold_after)[1]


def _overlap(
    engine: Engine, here: Stage, first: str, second: str, where: str, **how: object
) -> tuple[Overlap | None, list[str]]:
    empty(engine)
    rows = scene(engine, where)
    try:
        met = overlap(
            here,
            lambda session: ACTS[first].do(session, rows, False),
            lambda session: ACTS[second].do(session, rows, True),
            **how,
        )
    except Exception as error:
        return None, [f"{how or 'whole'}: {error!r}"]
    retried = [twin.task_id for twin in rows.twins] if "retry" in first + second else []
    found = complaints(engine, BillingTask, MailTask, orphans=retried)
    if met.waited and second in NEVER_WAITS:
        found.append("it waited")
    return met, [f"{how or 'whole'}: {what} {met}" for what in found]
