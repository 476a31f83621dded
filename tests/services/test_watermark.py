"""Claims behind a watermark find every task, at the latest with the next full scan."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, func
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims
from sa_durable.services.watermark import FULL_SCAN_INTERVAL_S, IDLE_AFTER_S, ClaimWatermark
from tests.services.claiming import MINUTE, change, do, spawn
from tests.shop import MailTask, send_mail

pytestmark = pytest.mark.service

HOUR = timedelta(hours=1)


class Stopped:
    """A clock that stops: no full scan becomes due by itself."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def watermark(engine) -> ClaimWatermark:
    """Of a stream of tasks: the last claim found less than it asked for."""
    # The database's clock goes on meanwhile: a machine that stalls for seconds must not make a task late.
    watermark = ClaimWatermark(Stopped(), late_commit_s=HOUR.total_seconds() / 2)
    spawn(engine)
    assert len(claim(engine, watermark)) == 1
    assert watermark.scan_ranges() is not None
    return watermark


def claim(engine: Engine, watermark: ClaimWatermark, limit: int = 10) -> list[UUID]:
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": limit}
        return [
            claimed.task_id for claimed in claims.claim(session, MailTask, **options, watermark=watermark)
        ]


def test_a_stream_of_tasks_is_claimed_in_order(engine, watermark):
    for _ in range(3):
        low, urgent = spawn(engine)[0], spawn(engine, priority=-1)[0]
        assert claim(engine, watermark) == [urgent, low]


def test_a_task_that_commits_after_the_claim_of_later_tasks_is_found(engine, watermark):
    with Session(engine) as session:
        late = Durable(session).spawn(send_mail.call(to="late@example.org"), priority=-1).task_id
        [soon] = spawn(engine)
        assert claim(engine, watermark) == [soon]
        [other] = spawn(engine)
        session.commit()
    assert claim(engine, watermark) == [late, other]


def test_a_task_with_an_old_due_time_waits_for_the_next_full_scan(engine, watermark):
    old, new = spawn(engine, 2)
    change(engine, [old], available_at=func.now() - HOUR)
    assert [claim(engine, watermark) for _ in range(2)] == [[new], []]
    watermark._clock.time += watermark.full_scan_due_in()
    assert claim(engine, watermark) == [old]


def test_task_with_an_old_due_time_is_found_at_once_in_an_idle_queue(engine, watermark):
    [old] = spawn(engine)
    change(engine, [old], available_at=func.now() - HOUR)
    assert claim(engine, watermark) == []  # a claim has just found tasks
    watermark._clock.time += 2 * IDLE_AFTER_S
    assert claim(engine, watermark) == [old]


def test_old_tasks_of_priorities_without_a_watermark_are_found_at_once(engine, watermark):
    watermark.record_claim(
        watermark.now(), watermark.scan_ranges(), limit=10, found=[(-2, HOUR * 0), (3, HOUR * 0)]
    )
    expected = {priority: spawn(engine, priority=priority)[0] for priority in (7, 3, 1, 0, -1, -2, -5)}
    change(engine, [expected[priority] for priority in (7, 1, -1, -5)], available_at=func.now() - HOUR)
    assert claim(engine, watermark, 4) == [expected[priority] for priority in (-5, -2, -1, 0)]
    assert claim(engine, watermark, 4) == [expected[priority] for priority in (1, 3, 7)]


def test_a_backlog_is_claimed_to_its_end_in_order(engine, watermark):
    old = spawn(engine, 25)
    change(engine, old, available_at=func.now() - HOUR)
    watermark = ClaimWatermark(Stopped())
    assert [claim(engine, watermark) for _ in range(3)] == [old[:10], old[10:20], old[20:]]
    assert claim(engine, watermark) == []


def test_a_released_task_is_claimed_again_by_the_next_full_scan(engine, watermark):
    [task] = spawn(engine)
    change(engine, [task], available_at=func.now() - HOUR)
    watermark._clock.time += FULL_SCAN_INTERVAL_S
    with Session(engine) as session, session.begin():
        options = {"names": ["send"], "worker": "w1", "lease": MINUTE, "limit": 10}
        [claimed] = claims.claim(session, MailTask, **options, watermark=watermark)
    do(engine, claims.release, {task: claimed.token})
    assert claim(engine, watermark) == []
    watermark._clock.time += watermark.full_scan_due_in()
    assert claim(engine, watermark) == [task]
