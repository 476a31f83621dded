"""Claims that begin behind what earlier ones have seen lose nothing."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, func
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims
from sa_durable.services.watermark import OFTEN, ClaimWatermark
from tests.services.claiming import MINUTE, change, do, spawn
from tests.shop import MailTask, send_mail

pytestmark = pytest.mark.service

HOUR = timedelta(hours=1)


class Stopped:
    """A clock of the client's, which stands still: nothing is looked at again because of the time."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def front(engine) -> ClaimWatermark:
    """Of a stream of tasks: the last claim found less than it asked for."""
    # The database's clock goes on meanwhile: a machine that stalls for seconds must not make a task late.
    front = ClaimWatermark(Stopped(), late_commit_s=HOUR.total_seconds() / 2)
    spawn(engine)
    assert len(claim(engine, front)) == 1
    assert front.reach() is not None
    return front


def claim(engine: Engine, front: ClaimWatermark, limit: int = 10) -> list[UUID]:
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": limit}
        return [claimed.task_id for claimed in claims.claim(session, MailTask, **options, watermark=front)]


def test_a_stream_of_tasks_is_claimed_in_order(engine, front):
    for _ in range(3):
        low, urgent = spawn(engine)[0], spawn(engine, priority=-1)[0]
        assert claim(engine, front) == [urgent, low]


def test_what_was_spawned_before_others_and_committed_after_their_claim_is_found(engine, front):
    with Session(engine) as session:
        late = Durable(session).spawn(send_mail.call(to="late@example.org"), priority=-1).task_id
        [soon] = spawn(engine)
        assert claim(engine, front) == [soon]
        [other] = spawn(engine)
        session.commit()
    assert claim(engine, front) == [late, other]


def test_a_task_that_was_due_long_ago_is_found_before_a_claim_finds_nothing(engine, front):
    old, new = spawn(engine, 2)
    change(engine, [old], available_at=func.now() - HOUR)
    assert [claim(engine, front) for _ in range(3)] == [[new], [old], []]


def test_tasks_of_priorities_that_were_never_seen_are_found_at_once_whatever_their_age(engine, front):
    front.claimed(front.now(), front.reach(), limit=10, found=[(-2, HOUR * 0), (3, HOUR * 0)])
    expected = {priority: spawn(engine, priority=priority)[0] for priority in (7, 3, 1, 0, -1, -2, -5)}
    change(engine, [expected[priority] for priority in (7, 1, -1, -5)], available_at=func.now() - HOUR)
    assert claim(engine, front, 4) == [expected[priority] for priority in (-5, -2, -1, 0)]
    assert claim(engine, front, 4) == [expected[priority] for priority in (1, 3, 7)]


def test_where_everything_is_dear_to_look_at_what_was_due_long_ago_is_found_when_that_is_due(engine, front):
    clock = front._clock
    for _ in range(OFTEN):
        front.claimed(clock.time - 0.001, front.reach(), limit=10, found=[])
        front.claimed(clock.time - 0.1, None, limit=10, found=[])
    old, new = spawn(engine, 2)
    change(engine, [old], available_at=func.now() - HOUR)
    assert [claim(engine, front) for _ in range(2)] == [[new], []]
    clock.time += front.owed()
    assert claim(engine, front) == [old]


def test_a_backlog_is_claimed_to_its_end_in_order(engine, front):
    old = spawn(engine, 25)
    change(engine, old, available_at=func.now() - HOUR)
    front = ClaimWatermark(Stopped())
    assert [claim(engine, front) for _ in range(3)] == [old[:10], old[10:20], old[20:]]
    assert claim(engine, front) == []


def test_what_is_given_back_is_claimed_again(engine, front):
    [task] = spawn(engine)
    change(engine, [task], available_at=func.now() - HOUR)
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": 10}
        [claimed] = claims.claim(session, MailTask, **options, watermark=front)
    do(engine, claims.release, {task: claimed.token})
    assert claim(engine, front) == [task]
