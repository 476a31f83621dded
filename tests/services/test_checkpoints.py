"""Checkpoints: the first value of a name stays, and only the holder of the claim writes."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import Session

from sa_durable import Fixed, LeaseLost
from sa_durable.services import checkpoints, maintenance, runs
from sa_durable.values import TaskError
from tests.services.claiming import claim, do, expire, row, spawn
from tests.shop import MailTask
from tests.waiting import in_blocked_thread, in_thread

pytestmark = pytest.mark.service


def test_a_checkpoint_comes_back_as_postgresql_keeps_it(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    assert do(engine, checkpoints.save, got, "a", '{"b":1e3,"b":[null,"ü"]}') == {"b": [None, "ü"]}
    assert do(engine, checkpoints.save, got, "none", "null") is None
    assert do(engine, checkpoints.load, [task]) == {task: {"a": {"b": [None, "ü"]}, "none": None}}


def test_a_save_whose_reply_was_lost_returns_the_first_value(engine):
    [task] = spawn(engine)
    [got] = claim(engine)
    do(engine, checkpoints.save, got, "pay", "1")
    assert do(engine, checkpoints.save, got, "pay", "2") == 1
    assert do(engine, checkpoints.load, [task]) == {task: {"pay": 1}}


# B9
def test_late_checkpoint_of_the_first_attempt_is_rejected(engine):
    [task] = spawn(engine, retry=Fixed())
    [first] = claim(engine, worker="A")
    expire(engine, [task])
    do(engine, maintenance.sweep_expired, limit=1)
    [second] = claim(engine, worker="B")
    assert do(engine, checkpoints.save, second, "k", '"second"') == "second"
    with pytest.raises(LeaseLost):
        do(engine, checkpoints.save, first, "k", '"first"')
    with pytest.raises(LeaseLost):
        do(engine, checkpoints.save, first, "new", '"first"')
    assert do(engine, checkpoints.load, [task]) == {task: {"k": "second"}}
    with pytest.raises(LeaseLost):
        do(engine, runs.fail, first, TaskError("E", "late"))


# B9: the fence is a lock, not a look
@pytest.mark.pooled(connections=3, reason="who locks, who waits for that, who looks")
def test_a_save_and_a_sweep_of_the_same_task_exclude_each_other(engine):
    [task] = spawn(engine, retry=Fixed())
    [first] = claim(engine)
    expire(engine, [task])
    with Session(engine) as saving, saving.begin():
        checkpoints.save(saving, MailTask, first, "in time", "1")
        assert in_thread(do, engine, maintenance.sweep_expired, limit=1).result(60) == []  # passes over it
    with Session(engine) as sweeping, Session(engine) as late:
        assert len(maintenance.sweep_expired(sweeping, MailTask, limit=1)) == 1
        write = in_blocked_thread(engine, late, checkpoints.save, MailTask, first, "too late", "1")
        sweeping.commit()
        assert isinstance(write.exception(60), LeaseLost)
        late.rollback()
    assert do(engine, checkpoints.load, [task]) == {task: {"in time": 1}} and row(engine, task).attempt == 2


def test_checkpoints_of_many_tasks_are_loaded_in_one_statement(engine):
    spawn(engine, 3)
    claims = claim(engine, 3)
    for number, got in enumerate(claims[:2]):
        do(engine, checkpoints.save, got, "n", str(number))
    ids = [got.task_id for got in claims]
    assert do(engine, checkpoints.load, ids) == dict(zip(ids, ({"n": 0}, {"n": 1}, {}), strict=True))
    assert do(engine, checkpoints.load, []) == {}
