"""A database with the tables of tests/runtime/app.py, and workers on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.orm import Session

from sa_durable import Call, Durable
from sa_durable.runtime import Worker
from sa_durable.runtime.tuning import Tuning
from tests.databases import database_fixture, emptied, engine_fixture
from tests.runtime import app, audit_app, context_app, family
from tests.runtime.app import Base, WorkTask
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TERMINAL = ("completed", "failed", "cancelled")


runtime_url = database_fixture(Base.metadata)
runtime_engine = engine_fixture("runtime_url")
verbs_url = database_fixture(context_app.Base.metadata)
verbs_engine = engine_fixture("verbs_url")
family_url = database_fixture(family.Base.metadata)
family_engine = engine_fixture("family_url")
ledger_url = database_fixture(audit_app.Base.metadata)


@pytest.fixture
def engine(runtime_engine: Engine) -> Engine:
    """An engine on these tests' tables, all empty."""
    app.reset()
    return emptied(runtime_engine, Base.metadata)


class Shop:
    """What tests do with tasks, each in a transaction of its own."""

    def __init__(self, engine: Engine, model: Any = WorkTask) -> None:
        self.engine, self.model = engine, model

    def spawn(self, call: Call[Any, Any], **options: Any) -> Any:
        with Session(self.engine) as session, session.begin():
            return Durable(session).spawn(call, **options).task_id

    def task(self, task_id: Any, model: Any = None) -> Any:
        with Session(self.engine) as session:
            task = session.get(model or self.model, task_id)
            session.expunge(task)
            return task

    def runs(self, task_id: Any) -> list[Any]:
        with Session(self.engine) as session:
            runs = self.model.Run
            found = list(session.scalars(select(runs).where(runs.task_id == task_id).order_by(runs.attempt)))
            session.expunge_all()
            return found

    def steps(self, task_id: Any) -> dict[str, Any]:
        with Session(self.engine) as session:
            saved = self.model.Checkpoint
            rows = session.execute(select(saved.name, saved.value).where(saved.task_id == task_id))
            return {name: value for name, value in rows}  # noqa: C416 - rows are pairs on every SQLAlchemy

    def set(self, task_id: Any, **values: Any) -> None:
        """Move a row's times, as if time had passed."""
        with Session(self.engine) as session, session.begin():
            session.execute(update(self.model).where(self.model.id == task_id).values(**values))

    def ended(self, *task_ids: Any, model: Any = None, timeout: float = 60) -> Any:
        """The tasks, once all are terminal."""

        def terminal() -> list[Any] | None:
            tasks = [self.task(task_id, model) for task_id in task_ids]
            return tasks if all(task.state in TERMINAL for task in tasks) else None

        tasks = wait_until(terminal, timeout, "the tasks to end")
        return tasks[0] if len(tasks) == 1 else tasks

    def state_is(self, task_id: Any, state: str, timeout: float = 60) -> Any:
        wait_until(lambda: self.task(task_id).state == state, timeout, f"state {state}")
        return self.task(task_id)


@pytest.fixture
def shop(engine: Engine) -> Shop:
    return Shop(engine)


@pytest.fixture
def verbs(verbs_engine: Engine) -> Shop:
    """As `shop`, for tests/runtime/context_app.py, in a database of its own."""
    context_app.reset()
    return Shop(emptied(verbs_engine, context_app.Base.metadata), context_app.VerbTask)


@pytest.fixture
def home(family_engine: Engine) -> Shop:
    """As `shop`, for tests/runtime/family.py, in a database of its own."""
    app.reset()
    return Shop(emptied(family_engine, family.Base.metadata), family.ParentTask)


@pytest.fixture
def books(ledger_url: str) -> Iterator[Shop]:
    """The ledger, empty."""
    audit_app.tries.clear()
    engine = create_engine(ledger_url)
    yield Shop(emptied(engine, audit_app.Base.metadata), audit_app.LedgerTask)
    engine.dispose()


@pytest.fixture
def script(monkeypatch):
    """Gives the ledger's handlers a function of the session: `script(fn)`."""
    return lambda fn: monkeypatch.setattr(audit_app, "script", fn)


@pytest.fixture
def play(monkeypatch):
    """Gives the ledger's handlers a function of the context: `play(fn)`."""
    return lambda fn: monkeypatch.setattr(audit_app, "play", fn)


@pytest.fixture
def quick_beats() -> Tuning:
    """Heartbeats come ten times a second, while a lease lasts a minute: no machine stalls for that long."""
    return Tuning(beats_per_lease=600, min_beat_age_fraction=0.0)


@contextmanager
def working(engine: Any, *queues: Any, **options: Any) -> Iterator[Worker]:
    """A worker that runs in a thread of its own until the block ends."""
    options = {
        "shutdown_timeout": timedelta(seconds=5),
        "poll_interval": timedelta(milliseconds=20),
        **options,
    }
    worker = Worker(engine, queues or [WorkTask], **options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        app.gate.set()
        context_app.gate.set()
        worker.request_stop()
        thread.join(60)
        assert not thread.is_alive(), "the worker didn't stop"


@pytest.fixture
def worker_process(runtime_url: str, engine: Engine) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `sa-durable worker` on these tests' application; whatever still runs is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *arguments: str, environ: dict[str, str] | None = None, module: str = "tests.runtime.app"
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sa_durable.cli", "worker", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "SA_DURABLE_DATABASE_URL": runtime_url, **(environ or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
