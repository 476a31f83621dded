"""Claims that begin behind what earlier ones have seen lose nothing."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, func
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import leases
from sa_durable.services.front import Front
from tests.services.claiming import MINUTE, change, do, spawn
from tests.shop import MailTask, send_mail

pytestmark = pytest.mark.service

HOUR = timedelta(hours=1)


class Stopped:
    """A clock of the client's, which stands still: nothing is looked at again because of the time."""

    def __call__(self) -> float:
        return 1000.0


@pytest.fixture
def front(engine) -> Front:
    """Of a stream of tasks: the last claim found less than it asked for."""
    front = Front(Stopped())
    spawn(engine)
    assert len(claim(engine, front)) == 1
    assert front.within() is not None
    return front


def claim(engine: Engine, front: Front, limit: int = 10) -> list[UUID]:
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": limit}
        return [claimed.task_id for claimed in leases.claim(session, MailTask, **options, front=front)]


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


def test_a_backlog_is_claimed_to_its_end_in_order(engine, front):
    old = spawn(engine, 25)
    change(engine, old, available_at=func.now() - HOUR)
    front = Front(Stopped())
    assert [claim(engine, front) for _ in range(3)] == [old[:10], old[10:20], old[20:]]
    assert claim(engine, front) == []


def test_what_is_given_back_is_claimed_again(engine, front):
    [task] = spawn(engine)
    change(engine, [task], available_at=func.now() - HOUR)
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": 10}
        [claimed] = leases.claim(session, MailTask, **options, front=front)
    do(engine, leases.release, {task: claimed.token})
    assert claim(engine, front) == [task]
