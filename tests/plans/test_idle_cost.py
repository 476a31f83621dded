"""An idle poll of a queue sends few statements and reads few pages, however many tasks wait, sleep or have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.loops.sweeper import Sweeper
from sa_durable.runtime.loops.waker import Waker
from sa_durable.runtime.runs.capacity import Capacity
from sa_durable.runtime.runs.registry import Registry
from sa_durable.runtime.threads.wakeup import Wakeup
from sa_durable.runtime.tuning import Tuning
from tests.plans.explaining import explain
from tests.shop import MailTask

HOUR = timedelta(hours=1)


@contextmanager
def sending(to: Engine) -> Iterator[list[tuple[str, Any]]]:
    """What is sent meanwhile to the engine's database, on whatever connection."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Connection, _: Any, statement: str, parameters: Any, *__: Any) -> None:
        if connection.engine.url == to.url:
            sent.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def catching_up(database: Database) -> Callable[[], object]:
    """Return a poll as it is sent every 5 s: with the events of other queues."""
    queues, capacity = Registry([MailTask]), Capacity(10, None)
    waker = Waker(
        database,
        queues,
        capacity,
        poll_interval=HOUR,
        tasks_ready=Wakeup(),
        sleepers_changed=Wakeup(),
        tuning=Tuning(catch_up_interval_s=HOUR.total_seconds()),  # not twice, should the machine stall
    )
    return waker.thread.run_once


def waking(database: Database) -> Callable[[], object]:
    """Return a poll as it is sent every 250 ms."""
    poll = catching_up(database)
    poll()
    return poll


def sweeping(database: Database) -> Callable[[], object]:
    """Return a sweep, as it runs every 5 s."""
    sweeper = Sweeper(
        database,
        Registry([MailTask]),
        sweep_interval=HOUR,
        tasks_ready=Wakeup(),
        sleepers_changed=Wakeup(),
    )
    return sweeper.thread.run_once


POLLS = {
    # One statement for everything that may be due.
    waking: (1, 40),
    # Also the awaited events of other queues, up to a thousand names, and which of those tasks have ended.
    catching_up: (3, 40 + 300 + 4500),
    # All 10,000 running tasks, and the next deadline.
    sweeping: (1, 3000 + 10),
}


@pytest.mark.parametrize("poll", POLLS, ids=lambda poll: poll.__name__)
def test_an_idle_poll_sends_few_statements_that_touch_few_pages(engine, mode, poll):
    database = Database(engine)
    act = poll(database)
    with sending(engine) as sent:
        act()
    database.close()
    # Plans are discarded after a slow poll, on a busy machine.
    polled = [one for one in sent if "SAVEPOINT" not in one[0] and one[0] != "DISCARD PLANS"]
    statements, pages = POLLS[poll]
    assert len(polled) == statements
    with Session(engine) as session:
        plans = [explain(session, *one, mode) for one in polled for _ in range(2)][1::2]
        session.rollback()
    assert set().union(*(plan.sequential for plan in plans)) <= {"durable_queues"}
    assert sum(plan.touched for plan in plans) <= pages
