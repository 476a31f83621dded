"""Events, from handlers to handlers. (B14 to B18; statement by statement: tests/services/test_events.py, test_waits.py)"""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.runtime import app, family
from tests.runtime.conftest import working
from tests.runtime.family import FLAVOURS, ChildTask, ParentTask
from tests.waiting import wait_until


def handler(name: str) -> Any:
    return getattr(family, name)


def emit(home, name: str, payload: Any = None) -> None:
    with Session(home.engine) as session, session.begin():
        Durable(session).emit_event(ParentTask, name, payload)


def no_wait_remains(home) -> None:
    """Once the worker has got to it."""
    waits = select(func.count()).select_from(ParentTask.Wait)
    with Session(home.engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        wait_until(lambda: session.scalar(waits) == 0, what="no wait to remain")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_event_emitted_before_the_wait_is_received_at_once(home, flavour):  # B14
    emit(home, "e", {"a": [1, None]})
    task = home.spawn(handler(f"{flavour}_awaits").call(name="e"))
    with working(home.engine, ParentTask, poll_interval=timedelta(minutes=10)):
        assert home.ended(task).result == {"a": [1, None]}
    assert app.calls["e"] == 1 and home.steps(task) == {"$await:e": {"payload": {"a": [1, None]}}}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_task_sleeps_without_a_thread_until_its_event_comes(home, flavour):
    with working(home.engine, ParentTask, concurrency=1):
        task = home.spawn(handler(f"{flavour}_awaits").call(name="e"))
        asleep = home.state_is(task, "sleeping")
        assert (asleep.available_at, asleep.claimed_by, asleep.lease_expires_at) == (None, None, None)
        emit(home, "another")
        emit(home, "e", 7)
        done = home.ended(task)
        no_wait_remains(home)
    assert (done.result, done.attempt, app.calls["e"]) == (7, 1, 2)
    assert home.runs(task) == []


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_payload_arrives_as_the_type_that_is_asked_for(home, flavour):
    task = home.spawn(handler(f"{flavour}_awaits_typed").call(name="paid"))
    emit(home, "paid", family.Paid(7))
    with working(home.engine, ParentTask):
        assert home.ended(task).result == 7


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_only_the_first_event_of_a_name_counts_and_wakes(home, flavour):  # B16
    emit(home, "e", "first")
    emit(home, "e", "second")
    call = handler(f"{flavour}_awaits_each").call(names=["e", "e", "e#2", "e"])
    with working(home.engine, ParentTask):
        task = home.spawn(call)
        asleep = home.state_is(task, "sleeping")
        emit(home, "e", "third")
        emit(home, "e#2", "its own")  # no repetition of e
        assert home.ended(task).result == ["first", "first", "its own", "first"]
    assert home.task(task).token == asleep.token + 1
    assert set(home.steps(task)) == {"$await:e", "$await:e#2", "$await:e##2", "$await:e#3"}


@pytest.mark.pooled(connections=4, reason="two transactions that stay open, and two for everybody")
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_open_transaction_that_emitted_blocks_no_task(home, flavour):  # B17
    """Neither those who wait for the event, nor those who emit it, nor the other events."""
    with working(home.engine, ParentTask), Session(home.engine) as open_, Session(home.engine) as other:
        Durable(open_).emit_event(ParentTask, "a", "open")
        Durable(open_).emit_event(ParentTask, "b", "open")
        first = home.spawn(handler(f"{flavour}_awaits").call(name="a"))
        second = home.spawn(handler(f"{flavour}_awaits").call(name="b"))
        for task in (first, second):
            home.state_is(task, "sleeping")
        Durable(other).emit_event(ParentTask, "b", "other")
        Durable(other).emit_event(ParentTask, "a", "other")
        emit(home, "a", "committed")
        assert home.ended(first).result == "committed"
        other.commit()
        assert home.ended(second).result == "other"
        assert home.task(first).state == "completed" and open_.in_transaction()
        open_.commit()
        late = home.spawn(handler(f"{flavour}_awaits").call(name="b"))
        assert home.ended(late).result == "other"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_wait_times_out_once_and_replays_see_the_same_timeout_at_once(home, flavour):  # B18
    with working(home.engine, ParentTask):
        task = home.spawn(handler(f"{flavour}_times_out").call(name="e", seconds=0.02))
        wait_until(lambda: home.task(task).attempt == 2)
        wait_until(lambda: home.task(task).state == "sleeping")
        assert len(app.seen) >= 2 and set(app.seen) == {
            "$await:e: the event wasn't emitted within the timeout"
        }
        assert home.steps(task)["$await:e"] == {"timed_out": True}
        assert home.task(task).available_at is None  # the second await has no timeout
        emit(home, "e", "late")
        assert home.ended(task).result == [2, "late"]
        no_wait_remains(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_timeout_wakes_a_task_when_it_is_over_and_not_at_the_next_poll(home, flavour):  # B18
    task = home.spawn(handler(f"{flavour}_awaits").call(name="e", timeout=0.05))
    with working(home.engine, ParentTask, poll_interval=timedelta(minutes=10)):
        assert home.ended(task).result == "timed out"
        no_wait_remains(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_handler_emits_once_however_often_it_runs(home, flavour):
    with working(home.engine, ParentTask):
        waiter = home.spawn(handler(f"{flavour}_awaits").call(name="e"))
        emitter = home.spawn(handler(f"{flavour}_emits").call(name="e"))
        assert home.ended(waiter, emitter)[0].result == {"amount": 1}
    with Session(home.engine) as session:
        event = ParentTask.Event
        payloads = session.scalars(select(event.payload).order_by(event.id)).all()
    assert payloads == [{"amount": 1}, {"amount": 101}]
    assert set(home.steps(emitter)) == {"$emit:e", "$emit:e#2"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_transactional_handler_emits_and_spawns_with_its_completion(home, flavour):
    with working(home.engine, ParentTask, ChildTask):
        waiter = home.spawn(handler(f"{flavour}_awaits").call(name="e"))
        task = home.spawn(handler(f"{flavour}_transaction").call(name="e"))
        ended, got = home.ended(task, waiter)
        assert (ended.state, ended.attempt, got.result) == ("completed", 2, 2)
        with Session(home.engine) as session:
            [child] = session.scalars(select(ChildTask.id)).all()
        assert ended.result == str(child)
        child = home.ended(child, model=ChildTask)
    assert (child.result, child.parent_queue, child.parent_id) == (3, "parents", task)


@pytest.mark.owner
def test_awaits_that_run_at_once_each_keep_their_own_time(home):
    with working(home.engine, ParentTask):
        task = home.spawn(family.async_awaits_at_once.call(times={"a": 60, "b": 0.05, "c": 60}))
        wait_until(lambda: "$await:b" in home.steps(task))
        emit(home, "a", 1)
        emit(home, "c", 3)
        assert home.ended(task).result == [1, "timed out", 3]
        no_wait_remains(home)


def test_awaits_that_run_at_once_are_each_registered_before_the_run_sleeps(home):
    names = [f"e{n}" for n in range(40)]
    with working(home.engine, ParentTask):
        for last in names[:10]:  # that one alone wakes the run, whichever fell asleep first
            task = home.spawn(family.async_awaits_at_once.call(times=dict.fromkeys(names, 60) | {last: 0.05}))
            wait_until(lambda: f"$await:{last}" in home.steps(task))  # noqa: B023 - called at once
            for name in names:
                emit(home, name, 1)
            assert home.ended(task).result == [1 if name != last else "timed out" for name in names]
            with Session(home.engine) as session, session.begin():
                session.execute(delete(ParentTask.Event))
        no_wait_remains(home)


WAITERS, ROUNDS = 128, 4


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_wake_up_is_lost(home, flavour):  # B15
    """128 waiters on events of their own, 4 times each; emits come at any moment, before and after, from committed and
    rolled-back transactions that stay open for a while."""
    dice = random.Random(15)
    names = [[f"{waiter}:{turn}" for turn in range(ROUNDS)] for waiter in range(WAITERS)]
    for waiter in names:
        home.spawn(handler(f"{flavour}_awaits_each").call(names=waiter))
    everything = [name for waiter in names for name in waiter]
    dice.shuffle(everything)
    shares = [everything[n::8] for n in range(8)]
    seeds = [dice.random() for _ in shares]

    def emit_all(share: list[str], seed: float) -> None:
        own = random.Random(seed)
        while share:
            with Session(home.engine) as session:
                batch = [share.pop() for _ in range(min(len(share), own.randint(1, 4)))]
                for name in batch:
                    Durable(session).emit_event(ParentTask, name, name)
                session.execute(text("SELECT pg_sleep(:s)"), {"s": own.choice([0, 0, 0.01, 0.05])})
                if own.random() < 0.25:
                    session.rollback()
                    share[:0] = batch  # the facts happen later
                else:
                    session.commit()

    emitters = [
        threading.Thread(target=emit_all, args=arguments) for arguments in zip(shares, seeds, strict=True)
    ]
    ended = select(func.count()).select_from(ParentTask).where(ParentTask.state == "completed")
    with (
        working(home.engine, ParentTask, concurrency=16),
        working(home.engine, ParentTask, concurrency=16),
        Session(home.engine, autoflush=False) as session,
    ):
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        for emitter in emitters:
            emitter.start()
        for emitter in emitters:
            emitter.join(120)
        wait_until(lambda: session.scalar(ended) == WAITERS, 120, "every waiter to have all its events")
        no_wait_remains(home)
        results = set(map(tuple, session.scalars(select(ParentTask.result))))
    assert results == set(map(tuple, names))
