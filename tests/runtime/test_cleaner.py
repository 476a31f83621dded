"""B25, by workers: queues with a retention are cleaned up on a timer."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from threading import get_ident
from time import monotonic
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.cli import main
from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.loops.cleaner import Cleaner
from sa_durable.runtime.runs.registry import Registry
from sa_durable.runtime.tuning import Tuning
from sa_durable.testing import event_factory, queue_factory, task_factory
from tests.proxy import Link, Proxy
from tests.runtime import app
from tests.runtime.app import OtherTask, WorkTask
from tests.runtime.conftest import ROOT, working
from tests.services.observed import statements
from tests.waiting import wait_until

DAY = timedelta(days=1)
ALWAYS_DUE = Tuning(cleanup_interval_s=0.0, cleanup_rest_factor=0.0)


def retain(engine: Any, model: Any, retention: timedelta | None) -> None:
    with Session(engine) as session, session.begin():
        Durable(session).set_retention(model, retention)


def fill(engine: Any, model: Any, number: int) -> None:
    long_ago = func.now() - 2 * DAY
    with Session(engine) as session, session.begin():
        task_factory(model, session).create_batch(number, completed=True, finished_at=long_ago)
        event_factory(model, session).create_batch(number, settled=True, settled_at=long_ago)


def count(engine: Any, *models: Any) -> list[int]:
    with Session(engine) as session:
        return [session.scalar(select(func.count()).select_from(model)) for model in models]


@pytest.mark.owner
def test_a_worker_cleans_up_queues_with_a_retention_while_it_runs(engine, shop):
    tuning = Tuning(cleanup_interval_s=0.02, cleanup_rest_factor=0.0, cleanup_batch_rows=2)
    fill(engine, WorkTask, 5)
    fill(engine, OtherTask, 5)
    retain(engine, OtherTask, None)
    with working(engine, WorkTask, OtherTask, _tuning=tuning):
        task = shop.spawn(app.double.call(number=2))
        assert shop.ended(task).result == 4
        retain(engine, WorkTask, DAY)  # from now on
        wait_until(lambda: count(engine, WorkTask, WorkTask.Event) == [1, 0])
    assert count(engine, OtherTask, OtherTask.Event) == [5, 5]


@pytest.mark.owner
def test_batches_are_bounded_and_follow_each_other_until_there_is_no_more(engine):
    fill(engine, WorkTask, 5)
    retain(engine, WorkTask, DAY)
    cleans = Cleaner(Database(engine), Registry([WorkTask]), replace(ALWAYS_DUE, cleanup_batch_rows=2))
    left = []
    while not left or left[-1]:
        assert cleans.thread.run_once() == 0.0  # at once, or when the timer says, which is at once
        left.append(count(engine, WorkTask)[0])
    assert left == [3, 1, 0]
    cleans._database.close()


def test_cleaner_without_retention_sends_one_statement_per_interval(engine):
    tuning = Tuning(cleanup_rest_factor=0.0)  # a cleanup that takes long doesn't make the pause longer
    database = Database(engine)
    cleans = Cleaner(database, Registry([WorkTask, OtherTask]), tuning)
    with statements(database._engine) as sent:
        assert 0 < cleans.thread.run_once() <= tuning.cleanup_interval_s
        assert sent == []
        cleans._due_at = 0.0
        assert cleans.thread.run_once() == tuning.cleanup_interval_s
    assert [text.split()[0] for text in sent if "durable" in text] == ["SELECT"]
    database.close()


def test_slow_clean_up_check_is_followed_by_a_longer_pause(engine):
    tuning = Tuning(cleanup_interval_s=0.0)
    cleans = Cleaner(Database(engine), Registry([WorkTask]), tuning)
    began = monotonic()
    paused = cleans.thread.run_once()
    assert 0 < paused <= (monotonic() - began) * tuning.cleanup_rest_factor
    cleans._database.close()


@pytest.mark.owner
def test_a_queue_that_cannot_be_cleaned_up_is_named_and_holds_up_no_other(engine, caplog):
    fill(engine, WorkTask, 1)
    with Session(engine) as session, session.begin():
        queue_factory(OtherTask, session)(retention=-DAY)  # which set_retention refuses
    retain(engine, WorkTask, DAY)
    database = Database(engine)
    caplog.set_level(logging.INFO, "sa_durable.worker")
    Cleaner(database, Registry([OtherTask, WorkTask]), ALWAYS_DUE).thread.run_once()
    database.close()
    assert count(engine, WorkTask) == [0]
    ours = [record for record in caplog.records if record.thread == get_ident()]
    assert [record.getMessage() for record in ours] == [
        "could not clean up: queue other, retention -1 day, 0:00:00 (InvalidOptions); other queues are cleaned up",
        "cleaned up: queue work, 1 tasks and 1 events deleted",
    ]


def test_the_command_cleans_up_queues_in_batches_until_nothing_is_left(engine, runtime_url):
    fill(engine, WorkTask, 5)
    fill(engine, OtherTask, 1)
    arguments = ["cleanup", "tests.runtime.app", "--database-url", runtime_url, "--batch", "2"]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        # A process of its own: this one knows queues called "work" of other tests, too.
        called = [sys.executable, "-m", "sa_durable.cli", *arguments, *more]
        return subprocess.run(called, cwd=ROOT, capture_output=True, text=True, check=False)

    both = command("--queue", "work", "--queue", "other", "--days", "3")
    assert both.stdout == "work: 0 tasks, 0 events deleted\nother: 0 tasks, 0 events deleted\n", both.stderr
    assert command("--days", "1", "--queue", "work").stdout == "work: 5 tasks, 5 events deleted\n"
    assert count(engine, WorkTask, WorkTask.Event, OtherTask) == [0, 0, 1]
    for wrong in (["--days", "1e10"], ["--days", "-1"], ["--days", "1", "--queue", "none"], []):
        assert CliRunner().invoke(main, [*arguments, *wrong]).exit_code == 2


def test_the_command_goes_on_after_a_lost_connection_and_says_so(engine, runtime_url):
    fill(engine, WorkTask, 3)
    cut = []

    def rule(link: Link, data: bytes) -> bytes:
        if b"DELETE" in data and not cut:
            cut.append(link)
            link.close()
        return data

    with Proxy(runtime_url, rule) as proxy:
        url = proxy.url.render_as_string(hide_password=False)
        command = [sys.executable, "-m", "sa_durable.cli", "cleanup", "tests.runtime.app", "--days", "1"]
        command += ["--queue", "work", "--database-url", url]
        called = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert called.stdout == "work: 3 tasks, 3 events deleted\n", called.stderr
    assert len(cut) == 1
    assert "cleanup of work (OperationalError" in called.stderr
    assert "retrying for up to 60 s" in called.stderr
