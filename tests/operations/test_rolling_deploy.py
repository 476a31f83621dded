"""Workers of two releases of an application on one queue: nothing fails that shouldn't. `SOAK=60` makes it last a minute.

The order of docs/guides/workers.md: workers first, then those who spawn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, exists, select
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.databases import throwaway, url_of
from tests.operations.deployed import Base, DeployedTask, Effect
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECONDS = max(4.0, float(os.environ.get("SOAK") or 0))
FIRST = ("same", "slow", "grows", "shrinks", "changes", "before", "naps")  # what the first release spawns
SECOND = ("same", "slow", "grows", "naps", "after", "added")
EXTRA: dict[str, dict[str, Any]] = {"shrinks": {"note": "x"}}
UNFIT = ("shrinks", "changes")  # what the first release spawned, and the second's signature doesn't take


@pytest.fixture
def database(server_url) -> Iterator[Engine]:
    with throwaway(server_url, Base.metadata) as engine:
        yield engine


@pytest.fixture
def start(database) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(release: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "sa_durable.cli", "worker", "tests.operations.deployed"]
        command += ["--concurrency", "5", "--poll-interval", "0.05"]
        environ = {**os.environ, "RELEASE": str(release), "SA_DURABLE_DATABASE_URL": url_of(database)}
        log = subprocess.DEVNULL
        started.append(subprocess.Popen(command, cwd=ROOT, env=environ, stderr=log, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


class Spawner:
    """Spawns what a release spawns, again and again, until it is stopped."""

    def __init__(self, engine: Engine, names: tuple[str, ...]) -> None:
        self._engine, self._names = engine, names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.spawned: dict[UUID, str] = {}
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.05):  # the pace: 20 tasks a second
            number += 1
            name = self._names[number % len(self._names)]
            self.spawn(name, {"number": number, **EXTRA.get(name, {})})

    def spawn(self, name: str, params: dict[str, Any]) -> UUID:
        with Session(self._engine) as session, session.begin():
            task = Durable(session).spawn(DeployedTask, name, params)
        self.spawned[task.task_id] = name
        return task.task_id

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def releases(engine: Engine) -> Counter[int]:
    """How many effects each release has written."""
    with Session(engine) as session:
        return Counter(session.scalars(select(Effect.release)))


def at_work(engine: Engine, worker: subprocess.Popen[str]) -> bool:
    """It has claimed a task: it is called host:pid:random."""
    mine = DeployedTask.claimed_by.contains(f":{worker.pid}:", autoescape=True)
    with Session(engine) as session:
        return session.scalar(select(exists().where(mine)))


def stop(worker: subprocess.Popen[str]) -> None:
    """One that is `at_work`: until then a signal just ends it."""
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def tasks(engine: Engine) -> list[DeployedTask]:
    with Session(engine) as session:
        found = list(session.scalars(select(DeployedTask)))
        session.expunge_all()
        return found


@pytest.mark.timeout(300 + 3 * SECONDS)
def test_two_releases_on_one_queue_fail_nothing_that_fits_either(database, start):
    old = [start(1), start(1)]
    spawner = Spawner(database, FIRST)
    spawners = [spawner]
    try:
        wait_until(lambda: releases(database)[1] > 5 * SECONDS, 120)
        wait_until(lambda: all(at_work(database, worker) for worker in old), 120)
        wait_until(
            lambda: {task.name for task in tasks(database) if task.state == "completed"} == {*FIRST}, 120
        )
        new = [start(2)]
        wait_until(lambda: releases(database)[2] > 0, 60)
        stop(old[0])
        wait_until(lambda: releases(database)[2] > 5 * SECONDS, 120)
        new.append(start(2))
        spawner.stop()
        second = Spawner(database, SECOND)  # workers of both are still there
        spawners.append(second)
        before = releases(database)[2]
        wait_until(lambda: releases(database)[2] > before + 5 * SECONDS, 120)
        wait_until(lambda: at_work(database, new[1]), 120)
        # Only the old ones know it: what a worker gives back when it ends has been begun.
        wait_until(
            lambda: not any(task.name == "before" and task.state != "completed" for task in tasks(database))
        )
        stop(old[1])
        late = spawner.spawn("before", {"number": 0})  # by somebody who was forgotten
        before = releases(database)[2]
        wait_until(lambda: releases(database)[2] > before + 5, 120)
    finally:
        for each in spawners:
            each.stop()
    known = {**spawner.spawned, **second.spawned}

    def waiting() -> list[DeployedTask]:
        return [t for t in tasks(database) if t.state not in ("completed", "failed") and t.name != "before"]

    wait_until(lambda: not waiting(), 60, "the tasks to end")
    for worker in new:
        stop(worker)

    found = {task.id: task for task in tasks(database)}
    assert found.keys() == known.keys()
    written = Counter()
    with Session(database) as session:
        effects = dict(session.execute(select(Effect.task_id, Effect.release)).all())
        written.update(session.scalars(select(Effect.task_id)))
    assert set(written.values()) == {1}

    for task in found.values():
        assert task.attempt == 1  # shutdowns burn none, and what doesn't fit isn't tried again
        if task.state == "failed":
            assert task.name in UNFIT
            assert task.error["type"] == "InvalidParams"
            assert {"shrinks": "note: Extra inputs", "changes": "number: Input should be a valid list"}[
                task.name
            ] in task.error["message"]
            assert task.id not in effects
        elif task.state == "pending":
            assert task.name == "before" and task.first_started_at is None and task.error is None
        else:
            assert task.state == "completed" and effects[task.id] in (1, 2)
            assert task.name != "before" or effects[task.id] == 1
            assert task.name not in ("after", "added") or effects[task.id] == 2
    assert found[late].state == "pending"
    states = Counter((task.name, task.state) for task in found.values())
    assert all(states[name, "completed"] for name in {*FIRST, *SECOND})
    print(f"{len(found)} tasks, {dict(releases(database))} by release, {dict(states)}")

    # What stayed behind runs as soon as somebody knows its name; what didn't fit does where it fits.
    with Session(database) as session, session.begin():
        unfit = [task.id for task in found.values() if task.state == "failed"]
        for task_id in unfit:
            Durable(session).retry(DeployedTask, task_id)
    last = start(1)
    wait_until(lambda: all(task.state == "completed" for task in tasks(database)), 60)
    stop(last)


def test_old_workers_refuse_a_new_param_with_a_clear_error(database, start):
    worker = start(1)
    with Session(database) as session, session.begin():
        task = Durable(session).spawn(DeployedTask, "grows", {"number": 1, "unit": "in"})
    wait_until(lambda: tasks(database)[0].state == "failed", 60)
    stop(worker)
    (failed,) = tasks(database)
    assert failed.error["type"] == "InvalidParams"
    assert (
        f"stored params of task {failed.id} no longer match grows(): unit: Extra" in failed.error["message"]
    )
    worker = start(2)
    with Session(database) as session, session.begin():
        Durable(session).retry(task)
    wait_until(lambda: tasks(database)[0].state == "completed", 60)
    stop(worker)
