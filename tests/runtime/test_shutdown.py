"""How a worker's process ends, and what becomes of what it had in hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.cli import main
from tests.children import read_error_until
from tests.runtime import app
from tests.runtime.conftest import ROOT, working
from tests.waiting import wait_until


def unharmed(shop, task_id):
    """Given back: ready at once, and no attempt burnt."""
    task = shop.task(task_id)
    assert (task.state, task.attempt, task.claimed_by, task.lease_expires_at) == ("pending", 1, None, None)
    assert task.token == 2 and task.started_at is None and shop.runs(task_id) == []
    return task


# B29
@pytest.mark.parametrize("handler", [app.hangs, app.ahangs, app.shields])
def test_sigterm_gives_back_what_is_not_done_in_time(worker_process, shop, handler):
    task = shop.spawn(handler.call())
    run_id = shop.task(task).run_id
    process = worker_process("--shutdown-timeout", "0.5")
    wait_until(lambda: "begun" in shop.steps(task))
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: shop.task(task).state == "pending")
    assert unharmed(shop, task).run_id == run_id
    assert time.monotonic() - sent < 20, "that wasn't 0.5 s, but the 30 that are the default"
    assert process.wait(60) == 0


# B29
def test_sigterm_lets_running_tasks_finish_and_claims_nothing_more(worker_process, shop, tmp_path):
    running = shop.spawn(app.waits_for_file.call(path=str(tmp_path / "go on")))
    process = worker_process("--concurrency", "1", "--prefetch", "1")
    wait_until(lambda: "begun" in shop.steps(running))
    fetched = shop.spawn(app.triple.call(number=1))
    wait_until(lambda: shop.task(fetched).state == "running")  # claimed ahead, no slot yet
    process.send_signal(signal.SIGTERM)
    read_error_until(process, "shutting down: ")
    (tmp_path / "go on").touch()
    assert process.wait(60) == 0
    assert shop.task(running).result == "done" and unharmed(shop, fetched)


# B29
def test_a_second_sigterm_gives_back_at_once(worker_process, shop):
    task = shop.spawn(app.hangs.call())
    process = worker_process("--shutdown-timeout", "600")
    wait_until(lambda: "begun" in shop.steps(task))
    process.send_signal(signal.SIGTERM)
    read_error_until(process, "shutting down: 1 tasks held")
    assert shop.task(task).state == "running"
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: shop.task(task).state == "pending", timeout=20)
    unharmed(shop, task)
    assert process.wait(60) == 0


# B29
def test_handler_that_blocks_the_loop_does_not_block_releasing(worker_process, shop):
    task = shop.spawn(app.blocks.call(seconds=600))
    process = worker_process("--shutdown-timeout", "0.5")
    wait_until(lambda: "begun" in shop.steps(task))
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: shop.task(task).state == "pending", timeout=20)
    unharmed(shop, task)
    assert process.wait(60) == 0


# B29
@pytest.mark.parametrize("handler", [app.naps, app.anaps])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_and_a_sleeping_task_end_at_once(worker_process, shop, number, handler):
    asleep = shop.spawn(handler.call(seconds=600))
    process = worker_process()
    wait_until(lambda: shop.task(asleep).state == "sleeping")
    before = shop.task(asleep)
    process.send_signal(number)
    assert process.wait(60) == 0
    after = shop.task(asleep)
    assert (after.state, after.token, after.available_at) == ("sleeping", before.token, before.available_at)


# B29: SIGKILL after the grace of whoever stops us
def test_what_was_given_back_is_safe_from_a_sigkill_that_follows(worker_process, engine, shop):
    task = shop.spawn(app.takes_once.call())
    process = worker_process("--shutdown-timeout", "0.2")
    wait_until(lambda: "begun" in shop.steps(task))
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: shop.task(task).state == "pending", timeout=20)
    process.kill()
    with working(engine):
        assert shop.ended(task).result == [True, 1]  # the step was replayed, in the same attempt


def test_stop_inside_an_application_gives_back_what_was_fetched_ahead(engine, shop):
    first = shop.spawn(app.waits.call(label="first"))
    with working(engine, concurrency=1, prefetch=5, shutdown_timeout=timedelta(seconds=60)) as worker:
        wait_until(lambda: app.calls["first"])
        fetched = [shop.spawn(app.quick.call(label="fetched")) for _ in range(3)]
        wait_until(lambda: all(shop.task(task).state == "running" for task in fetched))
        worker.request_stop()
        wait_until(lambda: all(shop.task(task).state == "pending" for task in fetched))
        assert shop.task(first).state == "running"
        app.gate.set()
        assert shop.ended(first).result == "first"
        assert worker.closed.wait(60)
    assert all(unharmed(shop, task) for task in fetched) and app.calls["fetched"] == 0


def test_what_waits_too_long_for_a_slot_is_given_back_to_others(engine, shop):
    def held() -> list[tuple[str, int]]:
        return sorted((task.state, task.token) for task in map(shop.task, tasks))

    seldom = {"poll_interval": timedelta(minutes=10), "notify": False}
    with working(engine, concurrency=1, **seldom) as worker:
        worker.parts.capacity._mean_s = 0.001  # as after many quick tasks
        with Session(engine) as session, session.begin():  # so that one claim finds them all
            spawned = Durable(session).spawn_many([app.waits.call(label=f"{n}") for n in range(3)])
        tasks = [one.task_id for one in spawned]
        worker.parts.tasks_ready.set()
        wait_until(lambda: held() == [("pending", 2), ("pending", 2), ("running", 1)])
        assert worker.parts.capacity.prefetch == 0
        app.gate.set()
        # It looks for the others again as soon as it has room, and not at the next poll.
        assert {task.state for task in shop.ended(*tasks)} == {"completed"}


@pytest.mark.direct(reason="counts the server's connections, which are the pooler's")
@pytest.mark.owner
def test_nothing_of_the_workers_stays_connected(engine, shop):
    with working(engine):
        shop.ended(shop.spawn(app.flaky.call(failures=1)))
    engine.dispose()
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        wait_until(lambda: connection.scalar(others) == 0)


def test_command_says_which_argument_is_missing(runtime_url, monkeypatch):
    monkeypatch.delenv("SA_DURABLE_DATABASE_URL", raising=False)
    for arguments, url, said in (
        (["no.such_module"], None, "no module 'no.such_module'"),
        (["tests.runtime.app"], None, "no database given"),
        (["tests.runtime.app", "--queue", "nope"], runtime_url, "unknown queue: nope"),
        (["tests.runtime.app"], "not a url", "Could not parse"),
        (["tests.runtime.app", "--concurrency", "0"], runtime_url, "0 is not in the range"),
    ):
        done = CliRunner().invoke(main, ["worker", *arguments], env={"DATABASE_URL": url})
        assert done.exit_code == 2 and said in done.stderr, (arguments, done.stderr)


def test_without_click_the_command_names_the_extra():
    script = "import sys; sys.modules['click'] = None; import sa_durable.cli"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2 and 'pip install "sa-durable[cli]"' in done.stderr


def test_command_that_leaves_a_handler_behind_loses_no_output():
    script = """
from importlib import import_module
from threading import Event
from types import SimpleNamespace
command = import_module("sa_durable.cli.worker")
command.EXIT_AFTER_S = 0
print("printed")
closed = Event()
closed.set()
command._exit_when_closed(SimpleNamespace(closed=closed))
"""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=buffered, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "printed\n"), done.stderr


def test_command_runs_the_queues_it_is_given(worker_process, shop):
    ours, others = shop.spawn(app.double.call(number=2)), shop.spawn(app.other.call())
    process = worker_process("--queue", "other")
    assert shop.ended(others, model=app.OtherTask).result == "other.other"
    assert shop.task(ours).state == "pending"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
