"""B25: a clean-up that keeps nothing longer than it must, beside workers, loses nothing that anybody waits for."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased

from sa_durable import Durable, SpawnResult, TaskState
from sa_durable.runtime import TaskContext
from tests.races.racing import no_deadlock
from tests.runtime import app
from tests.runtime.app import NOW, OtherTask, WorkTask
from tests.runtime.conftest import working
from tests.waiting import in_thread, wait_until

FAMILIES = 40
QUEUES = (WorkTask, OtherTask)


@OtherTask.handler()
def leaf(ctx: TaskContext, number: int) -> int:
    return number


@WorkTask.handler(retry=NOW)
def family(ctx: TaskContext, number: int) -> int:
    """Joins what it spawned after a while, awaits an event, fails once, and joins again."""
    leaves = ctx.spawn_many([leaf.call(number=number), leaf.call(number=1)])
    first = ctx.join(leaves[0])
    awaited = ctx.await_event(f"go {number}")
    if ctx.attempt == 1:
        raise ConnectionError
    app.calls["done"] += 1
    return first + ctx.join(leaves[1]) + awaited


@WorkTask.handler(retry=NOW)
def stranger(ctx: TaskContext, task_id: UUID) -> str:
    """Joins a task that isn't its child."""
    joined = SpawnResult(task_id, task_id, 1, True, TaskState.PENDING, True, WorkTask)
    app.seen.append(ctx.join(joined))
    return "joined"


def emit(engine: Engine, stop: threading.Event) -> None:
    """Each event once its family waits for it, and a stranger for that: what comes before may be gone by then."""
    emitted: set[str] = set()
    wait, stranger = WorkTask.Wait, aliased(WorkTask.Wait)
    joined = stranger.event_name == func.concat("$task:", wait.task_id)
    while not stop.is_set():
        with Session(engine) as session, session.begin():
            waited = session.scalars(
                select(wait.event_name).where(wait.event_name.like("go %")).join(stranger, joined)
            )
            for name in set(waited) - emitted:
                Durable(session).emit_event(WorkTask, name, 1)
                emitted.add(name)
        stop.wait(0.005)


def clean(engine: Engine, stop: threading.Event) -> int:
    deleted = 0
    while not stop.is_set():
        for model in QUEUES:
            with Session(engine) as session, session.begin():
                cleaned = Durable(session).clean_up(model, older_than=timedelta(0), limit=7)
            deleted += cleaned.tasks
    return deleted


@pytest.mark.direct(reason="waits for the server's connections to end, which are the pooler's")
def test_children_events_and_joins_survive_immediate_clean_up(engine, shop):
    stop = threading.Event()
    with no_deadlock(engine), working(engine, *QUEUES, concurrency=8):
        threads = [in_thread(clean, engine, stop) for _ in range(2)]
        emitter = in_thread(emit, engine, stop)
        try:
            for number in range(FAMILIES):
                task = shop.spawn(family.call(number=number))
                shop.spawn(stranger.call(task_id=task))
            wait_until(lambda: app.calls["done"] >= FAMILIES and len(app.seen) >= FAMILIES, 120)
            wait_until(lambda: not left(engine), 120, "everything to be deleted")
        finally:
            stop.set()
            deleted = sum(thread.result(60) for thread in threads)
            emitter.result(60)
    assert sorted(app.seen) == [number + 2 for number in range(FAMILIES)]
    assert deleted == 4 * FAMILIES


def left(engine: Engine) -> int:
    with Session(engine) as session:
        return sum(session.scalar(select(func.count()).select_from(model)) for model in QUEUES)
