"""A worker outlives the loss of its database, and says so, without a busy loop.

On a private server that is stopped as by a crash: for 2 seconds, or as many as SA_DURABLE_OUTAGE says.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from sa_durable import wait_for, wait_for_async
from sa_durable.embedded import postgres
from sa_durable.runtime.threads.periodic import REMINDER_INTERVAL_S
from tests.runtime import app
from tests.runtime.conftest import Shop, working
from tests.waiting import in_thread, wait_until

OUTAGE = float(os.environ.get("SA_DURABLE_OUTAGE", "2"))
CHORES = 7  # that use the database, the listener's included; three of them every second at the least


@pytest.fixture(scope="module")
def server():
    with postgres(environ={}, durable=True, settings={"max_connections": "60"}) as server:
        engine = create_engine(server.url)
        app.Base.metadata.create_all(engine)
        engine.dispose()
        yield server


@pytest.fixture
def engine(server) -> Iterator[Engine]:
    app.reset()
    server.start()
    engine = create_engine(server.url)
    yield engine
    engine.dispose()


@pytest.fixture
def shop(engine) -> Shop:
    return Shop(engine)


@pytest.fixture
def connects(engine) -> list[float]:
    """When anybody tried to connect through the engine, or one of the worker's own beside it."""
    tried: list[float] = []
    event.listen(engine, "do_connect", lambda *_: tried.append(time.monotonic()))
    return tried


def outage(server, engine: Engine, seconds: float) -> None:
    server.stop("immediate")
    time.sleep(seconds)  # not for a fact: this is how long the database is away
    server.start()
    engine.dispose()  # the test's own connections; the worker's are its own to mend


def test_held_tasks_go_on_after_an_outage_with_few_log_lines(server, engine, shop, connects, caplog):
    held = [shop.spawn(app.waits_then_steps.call()) for _ in range(3)]
    caplog.set_level(logging.INFO, "sa_durable.worker")
    with working(engine, concurrency=4, lease=timedelta(seconds=max(60, 2 * OUTAGE))):
        wait_until(lambda: app.calls["inside"] == 3)
        connects.clear()
        caplog.clear()
        began, busy = time.monotonic(), time.process_time()
        server.stop("immediate")
        app.gate.set()  # their steps, and their ends, find no database
        time.sleep(OUTAGE)  # as above
        wait_until(
            lambda: len(connects) >= 10 and len(caplog.records) >= 3
        )  # this process may have stood still
        busy, ended = time.process_time() - busy, time.monotonic()
        tries, lines = sum(at < ended for at in connects), len(caplog.records)
        server.start()
        engine.dispose()
        tasks = shop.ended(*held, shop.spawn(app.double.call(number=4)))
        for chore in ("claimer", "waker", "sweeper"):
            wait_until(lambda chore=chore: f"thread recovered: {chore}" in caplog.text)
    assert [(task.state, task.attempt) for task in tasks] == 4 * [("completed", 1)]
    assert app.calls["late"] == 3
    duration = ended - began
    # Eight tries a chore until its pauses have grown to the cap of a second or five, and those of the steps in hand.
    assert 10 <= tries <= (CHORES + 3) * (8 + 2 * duration)
    assert 3 <= lines <= CHORES * (2 + duration / REMINDER_INTERVAL_S)
    assert busy < duration / 2
    print(f"{duration:.1f} s away: {tries} tries to connect, {lines} log lines, {busy:.2f} s of processor")


def test_outage_longer_than_the_lease_reruns_the_held_tasks(server, engine, shop, quick_beats):
    lease = timedelta(seconds=4)
    task = shop.spawn(app.waits_then_steps.call())
    with working(engine, lease=lease, sweep_interval=timedelta(milliseconds=200), _tuning=quick_beats):
        wait_until(lambda: app.calls["inside"] == 1)
        outage(server, engine, 4.5)
        wait_until(
            lambda: app.calls["inside"] == 2
        )  # the second attempt, while the first one still holds its slot
        app.gate.set()
        task = shop.ended(task)
        wait_until(lambda: app.seen)
    assert (task.state, task.attempt) == ("completed", 2)
    assert [run.error["type"] for run in shop.runs(task.id)] == ["LeaseExpired"]
    assert app.seen == ["LeaseLost"] and app.calls["late"] == 1


@pytest.mark.direct(reason="LISTEN")
@pytest.mark.parametrize("kind", ["psycopg", "psycopg async", "asyncpg"])
def test_wait_for_outlives_an_outage(server, engine, shop, kind):
    task = shop.spawn(app.double.call(number=4))

    def wait():
        if kind == "psycopg":
            return wait_for(engine, app.WorkTask, task, timeout=timedelta(minutes=5))
        return asyncio.run(awaited({"psycopg async": "psycopg", "asyncpg": "asyncpg"}[kind]))

    async def awaited(driver):
        one = create_async_engine(make_url(server.url).set(drivername=f"postgresql+{driver}"))
        try:
            return await wait_for_async(one, app.WorkTask, task, timeout=timedelta(minutes=5))
        finally:
            await one.dispose()

    waiting = in_thread(wait)
    wait_until(lambda: shop.task(task).awaited)
    outage(server, engine, 1)
    with working(engine):
        assert waiting.result(60).value == 8
