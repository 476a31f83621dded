"""How handlers fail: for good, or for another attempt; and what is stored of it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sa_durable import Durable, Fail, InvalidOptions, TaskError
from sa_durable.runtime.execution import executor
from sa_durable.runtime.runs.errors import (
    LEFT_OUT,
    MAX_FIELD_CHARS,
    MAX_FIELDS_CHARS,
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    UNREADABLE,
    retryable,
    to_task_error,
)
from tests.runtime import context_app as app
from tests.runtime.conftest import working
from tests.runtime.context_app import Audit, CardDeclined, VerbTask
from tests.waiting import wait_until

DECLINED = {"code": "51", "amount": "9.50"}


@pytest.mark.parametrize("handler", [app.fails, app.afails])
def test_fail_ends_the_task_at_once_and_its_fields_are_stored(verbs, handler):
    task_id = verbs.spawn(handler.call(how="Fail"))
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert (task.state, task.attempt, app.calls["Fail"]) == ("failed", 1, 1)
    assert (task.error["type"], task.error["message"]) == ("Fail", "card declined")
    assert task.error["fields"] == DECLINED
    assert "raise Fail(" in task.error["traceback"]
    (run,) = verbs.runs(task_id)
    assert run.error == task.error
    with Session(verbs.engine) as session:
        error = Durable(session).result(VerbTask, task_id).error
    assert error is not None and error.fields == DECLINED


@pytest.mark.parametrize("handler", [app.fails, app.afails])
@pytest.mark.parametrize(("how", "attempts"), [("own", 2), ("closed", 1), ("group", 1), ("other", 2)])
def test_an_ordinary_error_is_retried_unless_the_queue_says_otherwise(verbs, handler, how, attempts):
    task_id = verbs.spawn(handler.call(how=how))
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert (task.state, task.attempt, app.calls[how]) == ("failed", attempts, attempts)


@pytest.mark.parametrize("handler", [app.picky, app.apicky])
def test_non_retryable_error_ends_the_task_with_its_fields(verbs, handler):
    own, closed = (
        verbs.spawn(handler.call(how="own")),
        verbs.spawn(handler.call(how="closed"), max_attempts=2),
    )
    with working(verbs.engine, VerbTask):
        declined, retried = verbs.ended(own, closed)
    assert (declined.state, declined.attempt) == ("failed", 1)
    assert declined.error["fields"] == DECLINED and "4242" not in str(declined.error["fields"])
    assert retried.attempt == 2  # the handler's own list replaces the queue's


@pytest.mark.parametrize("handler", [app.fails, app.afails])
def test_error_with_wrongly_declared_fields_ends_its_run(verbs, handler):
    task_id, after = verbs.spawn(handler.call(how="misdeclared")), verbs.spawn(handler.call(how="Fail"))
    with working(verbs.engine, VerbTask, concurrency=1):
        failed, _ = verbs.ended(task_id, after)
    assert (failed.state, failed.attempt) == ("failed", 2)
    assert (failed.error["type"], failed.error["message"]) == ("Misdeclared", "what happened")
    assert "fields" not in failed.error


@pytest.mark.parametrize("handler", [app.fails, app.afails])
def test_an_error_that_can_not_even_be_described_costs_the_worker_no_slot(
    verbs, handler, monkeypatch, caplog
):
    def out_of_memory(_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    monkeypatch.setattr(executor, "to_task_error", out_of_memory)
    first = verbs.spawn(handler.call(how="own"))
    with working(verbs.engine, VerbTask, concurrency=1):
        wait_until(lambda: "its lease will expire" in caplog.text)
        assert verbs.ended(verbs.spawn(handler.call(how="Fail"))).state == "failed"
    assert verbs.task(first).state == "running"


def test_what_fails_together_comes_back_apart(verbs):
    ids = [verbs.spawn(app.fails_apart.call()) for _ in range(20)]
    with working(verbs.engine, VerbTask):
        tasks = [verbs.state_is(task_id, "sleeping") for task_id in ids]
    delays = [task.available_at - verbs.runs(task.id)[0].ended_at for task in tasks]
    assert all(timedelta(minutes=30) <= delay <= timedelta(hours=1) for delay in delays)
    assert max(delays) - min(delays) > timedelta(minutes=5)  # less: once in 10 ** 13


@pytest.mark.parametrize("handler", [app.fails_in_step, app.afails_in_step])
def test_fail_in_a_step_ends_the_task_and_saves_nothing(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert (task.state, task.attempt, task.error["fields"]) == ("failed", 1, DECLINED)
    assert verbs.steps(task_id) == {}


@pytest.mark.parametrize(
    "handler",
    [
        app.fails_in_transaction,
        app.afails_in_transaction,
        app.fails_transactional,
        app.afails_transactional,
    ],
)
def test_fail_in_a_transaction_rolls_back_and_ends_the_task(verbs, handler):
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert (task.state, task.attempt, task.error["fields"]) == ("failed", 1, DECLINED)
    with Session(verbs.engine) as session:
        assert session.scalar(select(func.count()).select_from(Audit)) == 0


@pytest.mark.parametrize("handler", [app.parent, app.aparent])
@pytest.mark.parametrize("child", ["fails", "afails"])
def test_a_parent_sees_the_fields_of_a_failed_child(verbs, handler, child):
    """B21"""
    task_id = verbs.spawn(handler.call(child=child))
    with working(verbs.engine, VerbTask):
        task = verbs.ended(task_id)
    assert task.result == {"type": "TaskFailed", "fields": DECLINED}


class Stubborn:
    def __repr__(self) -> str:
        raise RuntimeError


@dataclass
class Sized(Exception):
    code: str
    amount: Decimal
    hidden: str = "hidden"
    __durable_fields__ = ("code", "amount", "absent", "broken")

    @property
    def broken(self) -> str:
        raise RuntimeError


class OneName(Exception):
    __durable_fields__ = "errno"  # a tuple was meant


def circle() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


def test_fields_are_those_that_an_error_declares():
    assert to_task_error(Sized("a", Decimal("1.0"))).fields == {
        "code": "a",
        "amount": "1.0",
        "absent": UNREADABLE,
        "broken": UNREADABLE,
    }
    assert to_task_error(OSError(2, "no such file")).fields is None
    assert to_task_error(OneName()).fields == {"errno": UNREADABLE}
    assert to_task_error(Fail("no fields")).fields is None
    group = ExceptionGroup("several", [ValueError(), ExceptionGroup("inner", [Fail("x", code=7)])])
    assert to_task_error(group).fields == {"code": 7}


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\0b\ud800", "a\\x00b\\ud800"),
        ({"a\0": [float("nan"), float("-inf"), 1.5]}, {"a\\x00": ["nan", "-inf", 1.5]}),
        ({1: {2}, None: (1, 2)}, {"1": [2], "None": [1, 2]}),
        (Decimal("1.50"), "1.50"),
        (SecretStr("secret"), "**********"),
        (b"\xff", "_w=="),
        (Stubborn(), UNREADABLE),
        (circle(), UNREADABLE),
        (10**5000, UNREADABLE),
        (10**400, 10**400),
    ],
    ids=["text", "floats", "keys", "decimal", "secret", "bytes", "repr", "circle", "endless", "long"],
)
def test_a_field_that_json_can_not_hold_is_replaced(verbs, value, stored):
    """B27"""
    assert to_task_error(Fail("x", value=value)).fields == {"value": stored}
    app.seen.append(Fail("x", value=value))
    task_id = verbs.spawn(app.raises_what_it_is_given.call())
    with working(verbs.engine, VerbTask):
        assert verbs.ended(task_id).error["fields"] == {"value": stored}


def test_what_is_stored_of_an_error_is_bounded(verbs):
    """B27"""
    fields = {f"{'n' * 500}{n}": "é" * 100_000 for n in range(200)} | {"list": list(range(1_000_000))}
    stored = to_task_error(Fail("m" * 100_000, **fields))
    assert len(stored.message) <= MAX_MESSAGE_CHARS and len(stored.traceback or "") <= MAX_TRACEBACK_CHARS
    assert stored.fields is not None and len(stored.fields) <= 64
    assert list(stored.fields.values())[-1] == LEFT_OUT
    assert max(len(field) for field in stored.fields.values()) <= MAX_FIELD_CHARS
    assert sum(len(field) for field in stored.fields.values() if field != LEFT_OUT) <= MAX_FIELDS_CHARS
    app.seen.append(Fail("m" * 100_000, **fields))
    task_id = verbs.spawn(app.raises_what_it_is_given.call())
    with working(verbs.engine, VerbTask):
        assert verbs.ended(task_id).error["message"].startswith("mmm")


def test_fail_and_its_fields_pickle():
    copy = pickle.loads(pickle.dumps(Fail("declined", code="51")))
    assert (str(copy), copy.fields) == ("declined", {"code": "51"})


def test_errors_of_a_group_decide_whether_it_is_retried():
    assert retryable(ExceptionGroup("g", [ValueError(), KeyError()]))
    assert not retryable(ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Fail()])]))
    assert not retryable(KeyError(), (LookupError,)) and retryable(ValueError(), (LookupError,))


def test_stored_errors_without_fields_are_read_as_before():
    old = TaskError("E", "m", "t")
    assert old.to_json() == {"type": "E", "message": "m", "traceback": "t"}
    assert TaskError.from_json(old.to_json()) == old
    new = TaskError("E", "m", None, {"code": 1})
    assert TaskError.from_json(new.to_json()) == new and hash(new)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"non_retryable": ("CardDeclined",)}, "must be exception classes"),
        ({"non_retryable": (int,)}, "must be exception classes"),
        ({"non_retryable": [CardDeclined]}, "must be exception classes"),
        ({"timeout": 5}, "timeout=5 must be a timedelta"),
        ({"non_retriable": CardDeclined}, "unknown spawn options"),
    ],
)
def test_invalid_run_options_are_refused_at_declaration(options, complaint):
    with pytest.raises(InvalidOptions, match=complaint):
        VerbTask.handler(**options)(lambda ctx: None)
