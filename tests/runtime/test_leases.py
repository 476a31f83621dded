"""Leases against real time: heartbeats, lost workers, lost leases."""

from __future__ import annotations

import os
import signal
from datetime import timedelta

import pytest
from sqlalchemy import func

from tests.children import read_error_until
from tests.runtime import app
from tests.runtime.conftest import working
from tests.waiting import wait_until

# They really run out here; a machine that stands still for three seconds loses no lease.
LEASE = timedelta(seconds=5)
REAL = ("--lease", "5")


# B30
@pytest.mark.parametrize("name", ["blocks", "computes", "plain_computes"])
def test_handler_that_blocks_loop_or_interpreter_keeps_its_lease(worker_process, engine, shop, name):
    worker_process(*REAL)
    with working(engine, sweep_interval=timedelta(seconds=0.1)) as sweeper:
        sweeper.parts.claimer.thread.stop()  # it only sweeps
        assert sweeper.parts.claimer.thread.join(60)
        task = shop.spawn(getattr(app, name).call(seconds=8))
        done = shop.ended(task)
    assert (done.state, done.attempt, done.token, shop.runs(task)) == ("completed", 1, 1, [])
    assert done.finished_at - done.started_at >= 1.5 * LEASE


# B30
def test_handler_that_holds_the_gil_past_its_lease_is_fenced(worker_process, engine, shop, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    task = shop.spawn(app.holds_gil.call(pipe=str(pipe)))
    process = worker_process(*REAL, "--worker-id", "frozen")
    wait_until(lambda: "begun" in shop.steps(task))
    with working(engine, sweep_interval=timedelta(seconds=0.1)):
        assert shop.ended(task).result == "attempt 2"
    pipe.write_bytes(b"!")
    [run] = shop.runs(task)
    assert (run.attempt, run.state, run.worker, run.error["type"]) == (1, "failed", "frozen", "LeaseExpired")
    read_error_until(process, "LeaseLost")  # it wakes up, and knows that it is late
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    after = shop.task(task)
    assert (after.result, after.token, shop.steps(task)) == ("attempt 2", 3, {"begun": True})


# B1, with a worker that is really lost
def test_a_killed_workers_task_runs_elsewhere_after_lease_and_sweep(
    worker_process, engine, shop, quick_beats
):
    task = shop.spawn(app.hangs.call())
    process = worker_process(*REAL, "--worker-id", "lost")
    wait_until(lambda: "begun" in shop.steps(task))
    process.kill()
    process.wait()
    assert shop.task(task).claimed_by == "lost"
    queues, often = (app.OtherTask, app.WorkTask), timedelta(seconds=0.1)
    with working(engine, *queues, sweep_interval=often, _tuning=quick_beats) as worker:
        wait_until(lambda: shop.task(task).attempt == 2 and shop.task(task).state == "running")
        assert shop.task(task).claimed_by == worker.worker_id
        shop.set(task, state="cancelled", token=99)  # it would hang for ten minutes
        worker.request_stop()
    [run] = shop.runs(task)
    assert (run.attempt, run.worker, run.error["type"]) == (1, "lost", "LeaseExpired")
    assert "lost stopped extending its lease in attempt 1" in run.error["message"]


# B8
def test_sync_handler_learns_of_a_lost_lease_at_its_next_step(engine, shop):
    task = shop.spawn(app.waits_then_steps.call())
    with working(engine):
        wait_until(lambda: app.calls["inside"])
        shop.set(task, token=50, lease_expires_at=func.now() + timedelta(hours=1))  # somebody else has it
        app.gate.set()
        wait_until(lambda: app.seen)
        assert shop.ended(shop.spawn(app.double.call(number=3))).result == 6
    assert app.seen == ["LeaseLost"] and shop.steps(task) == {}
    assert (shop.task(task).state, shop.task(task).token) == ("running", 50)


def test_async_handler_ends_when_its_lease_cannot_be_extended(engine, shop):
    task = shop.spawn(app.aswallows.call())
    with working(engine, lease=timedelta(seconds=1), sweep_interval=timedelta(hours=1)) as worker:
        wait_until(lambda: app.calls["aswallows"])
        worker.parts.heartbeat.thread.stop()  # as if its connection were half-open
        wait_until(lambda: len(app.seen) == 2)
    assert app.seen == ["CancelledError", "LeaseLost"] and shop.steps(task) == {}
    assert shop.task(task).state == "running"  # nothing was written, and nobody has swept yet
