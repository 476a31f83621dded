"""What a task that was started by older code finds: the table in docs/guides/steps.md, line by line."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sa_durable import InvalidParams, InvalidResult, NoRetry, TaskContext
from sa_durable.testing import clock, run_until_idle
from tests.runtime.app import WorkTask

pytestmark = [
    pytest.mark.owner,
    pytest.mark.direct(reason="sa_durable.testing.clock moves the time of sessions"),
]
DAY = timedelta(days=1)


def release(fn):
    """The code of tasks called `changing`, from now on."""
    fn.__name__ = fn.__qualname__ = "changing"
    return WorkTask.handler("changing", retry=NoRetry())(fn)


@pytest.fixture(autouse=True)
def forget():
    yield
    WorkTask.__handlers__.pop("changing", None)


@pytest.fixture
def resume(engine, shop):
    """Starts a task with old code, and goes on with new code after its sleep; what handlers raised then."""

    def old(ctx: TaskContext, a: int = 1, b: int = 2) -> list:
        first = ctx.step("first", lambda: "first")
        ctx.step("second", lambda: "second")
        ctx.sleep_for(DAY)
        return [first, ctx.step("third", lambda: "third")]

    def resumed(new, *, was=old, **params):
        task = shop.spawn(release(was).call(**params))
        with clock(engine) as time:
            run_until_idle(engine, WorkTask)
            if new is None:
                del WorkTask.__handlers__["changing"]
            else:
                release(new)
            time.advance(DAY)
            errors = run_until_idle(engine, WorkTask).errors
        return shop.task(task), errors

    return resumed


def ran():
    return "ran"


def test_an_added_step_runs_also_before_finished_ones(resume):
    def new(ctx: TaskContext) -> list:
        return [ctx.step("added", ran), ctx.step("first", ran), ctx.step("second", ran)]

    task, _ = resume(new)
    assert task.result == ["ran", "first", "second"]


def test_a_removed_step_is_left_unread(resume, shop):
    def new(ctx: TaskContext) -> str:
        return ctx.step("second", ran)

    task, _ = resume(new)
    assert task.result == "second" and set(shop.steps(task.id)) == {"first", "second", "$sleep"}


def test_a_renamed_step_runs(resume):
    def new(ctx: TaskContext) -> list:
        return [ctx.step("1st", ran), ctx.step("second", ran)]

    task, _ = resume(new)
    assert task.result == ["ran", "second"]


def test_a_moved_step_is_found(resume):
    def new(ctx: TaskContext) -> list:
        return [ctx.step("second", ran), ctx.step("first", ran)]

    task, _ = resume(new)
    assert task.result == ["second", "first"]


def test_two_steps_of_one_name_that_change_places_read_each_others_values(resume):
    def was(ctx: TaskContext) -> list:
        got = [ctx.step("k", lambda: "a"), ctx.step("k", lambda: "b")]
        ctx.sleep_for(DAY)
        return got

    def new(ctx: TaskContext) -> dict:
        b = ctx.step("k", lambda: "b")
        return {"a": ctx.step("k", lambda: "a"), "b": b}

    task, _ = resume(new, was=was)
    assert task.result == {"a": "b", "b": "a"}


def test_a_value_that_no_longer_fits_fails_the_task(resume):
    def new(ctx: TaskContext) -> int:
        return ctx.step("first", ran, returns=int)

    task, errors = resume(new)
    assert task.state == "failed" and isinstance(errors[0], InvalidResult)


def test_a_step_that_became_a_transaction_is_found(resume):
    def new(ctx: TaskContext) -> str:
        return ctx.transaction("first", lambda session: "ran")

    task, _ = resume(new)
    assert task.result == "first"


def test_a_new_param_has_its_default(resume):
    def new(ctx: TaskContext, a: int = 1, b: int = 3, c: int = 4) -> list:
        return [a, b, c]

    task, _ = resume(new, a=7)
    assert task.result == [7, 3, 4]


def test_params_that_no_longer_fit_fail_the_task_before_its_code_runs(resume, shop):
    def without(ctx: TaskContext, a: int = 1) -> None: ...

    def required(ctx: TaskContext, a: int, b: int, c: int) -> None: ...

    for new in (without, required):
        task, errors = resume(new, a=1, b=2)
        assert task.state == "failed" and isinstance(errors[0], InvalidParams)
        assert "third" not in shop.steps(task.id)


def test_task_without_a_handler_stays_unharmed(resume):
    task, errors = resume(None)
    assert (task.state, task.attempt, errors) == ("pending", 1, [])
