"""Where threads meet: what happens between two lines of another one."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.errors import Cancelled, LeaseLost
from sa_durable.runtime.connections.database import Database
from sa_durable.runtime.loops import heartbeat
from sa_durable.runtime.loops.heartbeat import Heartbeat
from sa_durable.runtime.loops.sweeper import Sweeper
from sa_durable.runtime.runs.active import ActiveRun, ActiveRuns
from sa_durable.runtime.runs.registry import Registry
from sa_durable.runtime.threads.wakeup import Wakeup
from sa_durable.testing import task_factory
from tests.runtime import audit_app
from tests.runtime.app import OtherTask, WorkTask
from tests.runtime.audit_app import LedgerTask
from tests.runtime.conftest import working


def claimed(deadline: float = 0.0) -> ActiveRun:
    claim: Any = SimpleNamespace(task_id=uuid4(), token=1, attempt=1, name="plain")
    return ActiveRun(WorkTask, claim, deadline)


def test_wakeup_set_at_the_timeout_is_kept_for_the_next_wait():
    wakeup = Wakeup()

    class Late(Event):
        def wait(self, timeout: float | None = None) -> bool:
            there = super().wait(0)
            if not there:
                wakeup.set()  # another thread, before the one that waited goes on
            return there

    wakeup._event = Late()
    assert wakeup.wait(0.01) is False
    assert wakeup.wait(0.01) is True


class Interrupted(ActiveRun):
    """A run that the heartbeat's thread ends just when its state is looked at."""

    @property
    def finishing(self) -> bool:
        self.end(Cancelled("meanwhile"))
        return False

    @finishing.setter
    def finishing(self, _: bool) -> None: ...


def test_run_cancelled_during_the_lease_check_does_not_stop_the_check():
    other, every = claimed(), ActiveRuns()
    every.add([run := Interrupted(WorkTask, claimed().claim, 0.0), other])
    every.end_overdue()  # raises nothing: its caller wouldn't call it again
    assert isinstance(run.signal, Cancelled) and isinstance(other.signal, LeaseLost)


def test_run_that_ended_before_its_start_is_dropped_on_release(engine, shop):
    with working(engine) as worker:
        run = claimed(deadline=1e12)
        worker.parts.active.add([run])
        run.end(Cancelled("while it waited for a slot"))
        worker.parts.completer.release(run)
        assert run not in worker.parts.active.all()


def test_stopped_sweeper_leaves_the_rest_to_others(engine):
    with Session(engine) as session, session.begin():
        lost = task_factory(WorkTask, session)(name="plain", lease_expired=True).id
    database = Database(engine)
    sweeper = Sweeper(
        database,
        Registry([WorkTask]),
        sweep_interval=timedelta(hours=1),
        tasks_ready=Wakeup(),
        sleepers_changed=Wakeup(),
    )
    sweeper.thread.stop()
    sweeper.thread.run_once()
    with Session(engine) as session:
        assert session.get_one(WorkTask, lost).state == "running"
    database.close()


def test_queue_with_failing_heartbeats_costs_other_queues_nothing(monkeypatch):
    every, extended = ActiveRuns(), []
    every.add(ActiveRun(model, claimed().claim, deadline=0.0) for model in (WorkTask, OtherTask))

    def extend(_database: Any, model: Any, *_: Any) -> None:
        if model is WorkTask:
            raise ConnectionError("its table, a right, a lock that took too long")
        extended.append(model)

    monkeypatch.setattr(heartbeat, "extend", extend)
    beats = Heartbeat(None, every, lease=timedelta(seconds=60))  # type: ignore[arg-type]  # extend has it
    with pytest.raises(ConnectionError):  # which the chore logs, and beats again soon
        beats.thread.run_once()
    assert extended == [OtherTask]


def test_step_gathered_with_a_wait_runs_again_after_waking(books, play):
    """As docs/guides/steps.md says, and what to do instead."""
    begun = []

    async def slow() -> int:
        begun.append(1)
        if len(begun) == 1:
            await asyncio.Event().wait()  # it would take longer than the task is awake
        return len(begun)

    async def plays(ctx: Any) -> list[Any]:
        return list(await asyncio.gather(ctx.step("slow", slow), ctx.await_event("paid")))

    play(plays)
    task = books.spawn(audit_app.afree.call())
    with working(books.engine, LedgerTask):
        books.state_is(task, "sleeping")
        assert books.steps(task) == {}
        with Session(books.engine) as session, session.begin():
            Durable(session).emit_event(LedgerTask, "paid", "yes")
        assert books.ended(task).result == [2, "yes"]
