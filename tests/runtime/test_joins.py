"""Parents and children: spawned once, joined, cancelled together. (B19 to B21; races: tests/races/test_cascades.py)"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import Durable, DurableTask
from sa_durable.ids import uuid7
from sa_durable.runtime.tuning import Tuning
from tests.databases import url_of
from tests.runtime import app, family
from tests.runtime.conftest import working
from tests.runtime.family import FLAVOURS, ChildTask, ParentTask
from tests.waiting import wait_until


class StrangersBase(DeclarativeBase):
    pass


class Stranger(DurableTask, StrangersBase):
    """The queue of the children, as an application knows it that has never heard of parents."""

    __queue__ = "children"


def handler(name: str) -> Any:
    return getattr(family, name)


def rows(home, model: Any, **where: Any) -> list[Any]:
    """Tasks, in the order of their spawns."""
    with Session(home.engine) as session:
        found = list(session.scalars(select(model).filter_by(**where).order_by(model.id)))
        session.expunge_all()
        return found


def states(home) -> dict[str, list[str]]:
    return {model.__queue__: [task.state for task in rows(home, model)] for model in (ParentTask, ChildTask)}


def all_states(home) -> list[str]:
    return [state for queue in states(home).values() for state in queue]


def nothing_is_left(home) -> None:
    """No wait and no internal event, once the worker has got to it."""
    wait_until(lambda: left_behind(home) == 0)


def left_behind(home) -> int:
    counted = [
        select(func.count()).select_from(table)
        for model in (ParentTask, ChildTask)
        for table in (model.Wait, model.Event)
    ]
    with Session(home.engine) as session:
        return sum(session.scalar(count) for count in counted)


def cancel(home, model: Any, task_id: Any) -> bool:
    with Session(home.engine) as session, session.begin():
        return Durable(session).cancel(model, task_id)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_parent_sleeps_until_a_child_of_another_queue_ends(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins").call(kind="grows"))
    with working(home.engine, ParentTask, ChildTask, concurrency=1):
        assert home.ended(parent).result == 2
        nothing_is_left(home)
    [child] = rows(home, ChildTask)
    assert (child.parent_queue, child.parent_id, app.calls["grows"]) == ("parents", parent, 1)
    assert {spawned.task_id for spawned in app.seen} == {child.id} and app.seen[0].created
    steps = home.steps(parent)
    assert set(steps) == {"$spawn:grows", "$join"} and steps["$spawn:grows"][0]["task_id"] == str(child.id)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_join_all_has_the_results_in_the_order_of_the_children(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins_all").call(kinds=["grows"] * 20))
    nothing = home.spawn(handler(f"{flavour}_joins_all").call(kinds=[]))
    with working(home.engine, ParentTask, ChildTask):
        assert home.ended(parent).result == [n + 1 for n in range(20)]
        assert home.ended(nothing).result == []
        nothing_is_left(home)
    assert app.calls["grows"] == 20


def test_children_can_be_joined_at_once_in_the_words_of_asyncio(home):
    parent = home.spawn(family.async_joins_at_once.call(kinds=["grows"] * 5))
    with working(home.engine, ParentTask, ChildTask):
        assert home.ended(parent).result == [1, 2, 3, 4, 5]
        nothing_is_left(home)


# B21


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_join_raises_what_became_of_the_child(home, flavour):
    failing = home.spawn(handler(f"{flavour}_joins").call(kind="breaks"))
    cancelled = home.spawn(handler(f"{flavour}_joins").call(kind="waits_for_ever"))
    with working(home.engine, ParentTask, ChildTask):
        error = home.ended(failing).error
        assert error["type"] == "TaskFailed" and "LookupError: no such toy" in error["message"]
        home.state_is(cancelled, "sleeping")
        [child] = rows(home, ChildTask, name="waits_for_ever")
        cancel(home, ChildTask, child.id)
        error = home.ended(cancelled).error
        nothing_is_left(home)
    assert error["type"] == "TaskCancelled" and str(child.id) in error["message"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_join_all_raises_for_the_first_failure_in_order(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins_all").call(kinds=["grows", "breaks", "waits_at_gate"]))
    with working(home.engine, ParentTask, ChildTask):
        wait_until(lambda: states(home)["children"][:2] == ["completed", "failed"])
        assert home.state_is(parent, "sleeping")
        app.gate.set()
        assert home.ended(parent).error["type"] == "TaskFailed"
    assert states(home)["children"] == ["completed", "failed", "completed"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_failure_two_levels_down_arrives_with_its_message(home, flavour):
    nested = family.plain_nests if flavour == "plain" else family.async_nests
    top = home.spawn(nested.call(depth=1, leaf="breaks"))
    model = nested.model
    with working(home.engine, ParentTask, ChildTask):
        error = home.ended(top, model=model).error
    assert error["type"] == "TaskFailed"
    assert "TaskFailed: task" in error["message"] and "LookupError: no such toy" in error["message"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_result_comes_up_through_many_levels_and_queues(home, flavour):
    nested = family.plain_nests if flavour == "plain" else family.async_nests
    top = home.spawn(nested.call(depth=6, leaf="grows"))
    with working(home.engine, ParentTask, ChildTask, concurrency=2):
        assert home.ended(top, model=nested.model).result == 2
        nothing_is_left(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_parents_failure_or_cancellation_cancels_all_descendants(home, flavour, end):
    nested = family.plain_nests if flavour == "plain" else family.async_nests
    top = home.spawn(nested.call(depth=4, leaf="waits_for_ever"))
    model = nested.model
    with working(home.engine, ParentTask, ChildTask, sweep_interval=timedelta(milliseconds=50)):
        wait_until(lambda: all_states(home) == ["sleeping"] * 6)
        if end == "cancelled":
            assert cancel(home, model, top)
        else:  # its lease runs out, and that was its last attempt
            home.model = model
            lost = {"state": "running", "token": 99, "available_at": None, "claimed_by": "gone"}
            home.set(top, **lost, lease_expires_at=func.now() - timedelta(minutes=1))
        wait_until(lambda: not {"sleeping", "pending", "running"} & set(all_states(home)))
        assert sorted(all_states(home)) == sorted([end] + ["cancelled"] * 5)
        nothing_is_left(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_failed_parent_cancels_its_child_and_completed_parent_does_not(home, flavour):
    failing = home.spawn(handler(f"{flavour}_leaves").call(kind="waits_for_ever", fails=True))
    completing = home.spawn(handler(f"{flavour}_leaves").call(kind="waits_for_ever", fails=False))
    with working(home.engine, ParentTask, ChildTask):
        failed, completed = home.ended(failing, completing)
        assert (failed.state, completed.state) == ("failed", "completed")
        assert [child.state for child in rows(home, ChildTask, parent_id=failing)] == ["cancelled"]
        [child] = rows(home, ChildTask, parent_id=completing)
        wait_until(lambda: home.task(child.id, ChildTask).state == "sleeping")
    assert str(child.id) == completed.result


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_child_of_a_timed_out_join_can_be_joined_again(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins_patiently").call(kind="waits_at_gate"))
    with working(home.engine, ParentTask, ChildTask):
        wait_until(lambda: app.calls["timed out"] and home.task(parent).state == "sleeping")
        assert home.steps(parent)["$join"] == {"timed_out": True}
        wait_until(lambda: states(home)["children"] == ["running"])  # the time may be over before it starts
        app.gate.set()
        assert home.ended(parent).result == ["timed out", "let through"]
        nothing_is_left(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_uncaught_join_timeout_fails_the_parent_and_cancels_the_child(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins").call(kind="waits_at_gate", timeout=0.05))
    with working(home.engine, ParentTask, ChildTask):
        assert home.ended(parent).error["type"] == "TimedOut"
        assert states(home)["children"] == ["cancelled"]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("before", ["pending", "completed"])
def test_a_task_that_held_the_key_before_is_joined_though_it_is_no_child(home, flavour, before):
    options = {"idempotency_key": "k", "hold": "forever"}
    known = home.spawn(family.grows.call(number=1), **options)
    if before == "completed":
        with working(home.engine, ChildTask):
            home.ended(known, model=ChildTask)
    parent = home.spawn(handler(f"{flavour}_adopts").call(key="k"))
    with working(home.engine, ParentTask):
        wait_until(lambda: "$spawn:grows" in home.steps(parent))
        if before == "pending":
            home.state_is(parent, "sleeping")
        with working(home.engine, ChildTask):
            assert home.ended(parent).result == [False, 2]
        nothing_is_left(home)
    [child] = rows(home, ChildTask)
    assert (child.id, child.parent_id, child.awaited) == (known, None, before == "pending")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_any_task_can_be_joined_by_its_id_even_a_deleted_one(home, flavour):
    other, gone = home.spawn(family.grows.call(number=1)), uuid7()
    joiner = home.spawn(handler(f"{flavour}_joins_id").call(task_id=other))
    lost = home.spawn(handler(f"{flavour}_joins_id").call(task_id=gone))
    with working(home.engine, ParentTask):
        home.state_is(joiner, "sleeping")
        with working(home.engine, ChildTask):
            assert home.ended(joiner).result == 2
        error = home.ended(lost).error
    assert error["type"] == "TaskNotFound" and str(gone) in error["message"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_task_that_would_wait_for_itself_fails_at_once(home, flavour):
    task = home.spawn(handler(f"{flavour}_joins_itself").call())
    with working(home.engine, ParentTask):
        failed = home.ended(task)
    assert (failed.state, failed.attempt, failed.error["type"]) == ("failed", 1, "DeclarationError")
    assert "can't join itself" in failed.error["message"]


# Workers that run different queues


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_parent_wakes_when_another_worker_has_run_its_child(home, flavour):
    parent = home.spawn(handler(f"{flavour}_joins").call(kind="grows"))
    with working(home.engine, ParentTask), working(home.engine, ChildTask):
        assert home.ended(parent).result == 2
        nothing_is_left(home)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_parent_wakes_although_the_childs_worker_lacks_its_queue(home, flavour):
    """The waker of the parent's worker checks other queues, now and then."""
    often = Tuning(catch_up_interval_s=0.2)
    Stranger.__handlers__.setdefault("grows", family.grows)
    with working(home.engine, ParentTask, _tuning=often), working(home.engine, Stranger):
        parent = home.spawn(handler(f"{flavour}_joins").call(kind="grows"))
        assert home.ended(parent).result == 2


# B19


@pytest.mark.parametrize("moment", ["before", "after"])
def test_parent_killed_around_its_spawn_checkpoint_has_one_child(home, worker_process, moment):
    url = url_of(home.engine)
    arguments = ("--queue", "parents", "--queue", "children")
    parent = home.spawn(family.bereaved.call())
    dying = worker_process(
        *arguments,
        module="tests.runtime.family",
        environ={family.DIES: moment, "SA_DURABLE_DATABASE_URL": url},
    )
    assert dying.wait(60) == -9
    saved = home.steps(parent)
    assert len(rows(home, ChildTask)) == len(saved) == {"before": 0, "after": 1}[moment]
    with Session(home.engine) as session, session.begin():
        for model in (ParentTask, ChildTask):  # it may have claimed its child, too
            lost = update(model).where(model.state == "running")
            session.execute(lost.values(lease_expires_at=func.now() - timedelta(seconds=1)))
    with working(home.engine, ParentTask, ChildTask, sweep_interval=timedelta(milliseconds=50)):
        child_id, created, joined = home.ended(parent).result
    [child] = rows(home, ChildTask)
    assert (child_id, created, joined, app.calls["grows"]) == (str(child.id), True, 2, 1)
    if saved:
        assert saved["$spawn:grows"][0]["task_id"] == child_id
