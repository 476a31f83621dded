"""Workers whose wall clock is wrong: the database's time decides (B13). And a database whose time jumps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from sa_durable.testing import clock, task_factory
from tests.runtime import app
from tests.runtime.app import WorkTask
from tests.runtime.conftest import working
from tests.waiting import wait_until

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.fixture
def worker_off(worker_process: Callable) -> Callable:
    """Starts a worker whose wall clock is off by some hours; durations are true, but time.sleep() fails there."""
    if not LIBRARIES:
        pytest.skip("needs Debian's libfaketime: apt-get install faketime")

    def start(hours: int):
        environ = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME": f"{hours:+d}h",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return worker_process("--sweep-interval", "0.1", "--lease", "30", environ=environ)

    return start


@pytest.mark.parametrize("hours", [1, -1])
def test_a_worker_whose_clock_is_an_hour_off_keeps_the_databases_time(worker_off, engine, shop, hours):
    with Session(engine) as session, session.begin():
        tasks = task_factory(WorkTask, session)
        lost = tasks(name="wall_clock", lease_expired=True).id
        held = tasks(name="wall_clock", running=True, claimed_by="another").id
        due = tasks(name="wall_clock", due=True).id
    later = shop.spawn(app.wall_clock.call(), delay=30 * MINUTE)
    naps = shop.spawn(app.naps.call(seconds=0.2))
    worker_off(hours)
    swept, woken, napped = shop.ended(lost, due, naps, timeout=60)
    again = shop.ended(shop.spawn(app.wall_clock.call()))  # a look at everything after all that

    for task in (swept, woken, again):
        off = timedelta(seconds=task.result - task.finished_at.timestamp())
        assert abs(off - hours * HOUR) < MINUTE, "the worker's clock wasn't off"
        assert task.started_at <= task.finished_at < task.started_at + MINUTE
    assert (swept.attempt, woken.attempt, napped.attempt) == (2, 1, 1)
    assert shop.task(held).claimed_by == "another" and shop.task(held).attempt == 1
    assert (shop.task(later).state, shop.task(later).attempt) == ("sleeping", 1)
    assert napped.finished_at - napped.created_at >= 0.4 * SECOND

    running = shop.state_is(shop.spawn(app.ahangs.call()), "running")
    assert running.lease_expires_at - running.started_at == 30 * SECOND


@pytest.mark.direct(reason="sa_durable.testing.clock moves the time of sessions")
@pytest.mark.owner
def test_database_time_jump_over_a_lease_loses_the_run(engine, shop):
    with clock(engine) as time, working(engine, lease=HOUR, sweep_interval=0.1 * SECOND):
        task = shop.spawn(app.waits_then_steps.call())
        wait_until(lambda: app.calls["inside"] == 1)
        time.advance(2 * HOUR)
        wait_until(lambda: app.calls["inside"] == 2)  # the same worker has swept it, and claimed it again
        app.gate.set()
        done = shop.ended(task)
        wait_until(lambda: app.seen)  # the first attempt has a thread of its own
    assert (done.state, done.attempt, app.seen) == ("completed", 2, ["LeaseLost"])
    assert [run.error["type"] for run in shop.runs(task)] == ["LeaseExpired"]
