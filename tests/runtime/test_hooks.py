"""Hooks before spawns and around runs: headers carry a context from the spawner to the handler."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.orm import Session

from sa_durable import AsyncTaskContext, Durable, TaskContext, current_context
from sa_durable.telemetry import RunningTask, Spawning, around_run, before_spawn, remove_hook
from tests.runtime import context_app as app
from tests.runtime.conftest import working
from tests.runtime.context_app import VerbTask
from tests.waiting import wait_until


@pytest.fixture
def hooks():
    """Registers hooks for one test: `hooks(before_spawn, hook)`."""
    registered: list[Any] = []

    def register(decorator: Any, hook: Any) -> None:
        registered.append(decorator(hook))

    yield register
    for hook in registered:
        remove_hook(hook)


def trace(spawning: Spawning) -> None:
    spawning.headers["trace"] = f"{spawning.queue}.{spawning.task}"


@contextmanager
def restored(task: RunningTask):
    token = app.variable.set(str(task.headers.get("trace")))
    try:
        yield
    finally:
        app.variable.reset(token)


@pytest.mark.parametrize("handler", app.TELLING)
def test_what_a_spawn_hook_puts_into_the_headers_a_run_hook_restores(verbs, hooks, handler):
    hooks(before_spawn, trace)
    hooks(around_run, restored)
    task_id = verbs.spawn(handler.call(), headers={"own": 1})
    with working(verbs.engine, VerbTask):
        value, headers = verbs.ended(task_id).result
    assert headers == {"own": 1, "trace": f"verbs.{handler.name}"}
    assert value == headers["trace"]


@pytest.mark.parametrize("handler", [app.spawns, app.aspawns, app.spawns_transactional])
def test_children_are_spawned_with_the_headers_of_the_hook(verbs, hooks, handler):
    hooks(before_spawn, trace)
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        children = [UUID(child) for child in verbs.ended(task_id).result]
        assert {task.headers["trace"] for task in verbs.ended(*children)} == {"verbs.tells"}
    assert len(children) >= 2


def test_every_way_of_spawning_asks_the_hooks(verbs, hooks):
    hooks(before_spawn, trace)
    with Session(verbs.engine) as session, session.begin():
        durable = Durable(session)
        session.add(task := app.tells.task())
        ids = [
            task.id,
            durable.spawn(app.tells.call(), only_once=True).task_id,
            durable.spawn(VerbTask, "unknown", {}).task_id,
            *(spawned.task_id for spawned in durable.spawn_many([app.tells.call()] * 2)),
        ]
    traces = [verbs.task(task_id).headers["trace"] for task_id in ids]
    assert traces == ["verbs.tells", "verbs.tells", "verbs.unknown", "verbs.tells", "verbs.tells"]


def by_execution(executions: list[tuple[Any, list[str]]], task: RunningTask) -> list[str]:
    """Where this execution says what it sees: a second one may begin before the first has said all."""
    if not executions or executions[-1][0] is not task:
        executions.append((task, []))
    return executions[-1][1]


@contextmanager
def listening(seen: list[Any], name: str):
    seen.append(f"{name} in")
    try:
        yield
    except BaseException as error:
        seen.append(f"{name} {type(error).__name__}")
        raise
    else:
        seen.append(f"{name} out")


@pytest.mark.parametrize("handler", [app.fails, app.afails, app.fails_transactional])
def test_a_run_hook_sees_the_error_that_ends_the_run(verbs, hooks, handler):
    seen: list[Any] = []
    hooks(around_run, lambda task: listening(seen, f"{task.name} {task.attempt}"))
    call = handler.call() if handler is app.fails_transactional else handler.call(how="Fail")
    with working(verbs.engine, VerbTask):
        verbs.ended(verbs.spawn(call))
    assert seen == [f"{handler.name} 1 in", f"{handler.name} 1 Fail"]


@pytest.mark.parametrize("handler", [app.sleeps_once, app.asleeps_once])
def test_a_run_hook_is_around_each_execution_and_sees_it_suspended(verbs, hooks, handler):
    executions: list[tuple[Any, list[str]]] = []
    hooks(around_run, lambda task: listening(by_execution(executions, task), "outer"))
    hooks(around_run, lambda task: listening(by_execution(executions, task), "inner"))
    suspended = ["outer in", "inner in", "inner Suspend", "outer Suspend"]
    with working(verbs.engine, VerbTask):
        assert verbs.ended(verbs.spawn(handler.call())).result == "awake"
        wait_until(lambda: executions[0][1] == suspended)
    assert [said for _, said in executions] == [suspended, ["outer in", "inner in", "inner out", "outer out"]]


@pytest.mark.parametrize("handler", [app.tells, app.atells])
def test_a_run_hook_is_given_the_handlers_context(verbs, hooks, handler):
    seen: list[Any] = []

    @contextmanager
    def hook(task: RunningTask):
        seen.append((task is current_context(), task.queue, task.name, task.task_id, task.attempt))
        seen.append(isinstance(task, AsyncTaskContext if handler.is_async else TaskContext))
        yield

    hooks(around_run, hook)
    task_id = verbs.spawn(handler.call())
    with working(verbs.engine, VerbTask):
        run_id = verbs.ended(task_id).run_id
    assert seen == [(True, "verbs", handler.name, task_id, 1), True]
    assert isinstance(run_id, UUID)


class Fails:
    """Fails at entering, or at leaving."""

    def __init__(self, *, entering: bool) -> None:
        self.entering = entering

    def __enter__(self) -> None:
        if self.entering:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        raise SystemExit(3)


class Swallows:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> bool:
        return True


def no_context_manager(task: RunningTask) -> None:
    return None


def raises(task: Any) -> Any:
    raise ValueError("a hook's own")


@pytest.mark.parametrize(
    "hook",
    [raises, no_context_manager, lambda task: Fails(entering=True), lambda task: Fails(entering=False)],
    ids=["raises", "no context manager", "entering", "leaving"],
)
@pytest.mark.parametrize("handler", app.TELLING)
def test_a_run_hook_that_fails_is_logged_and_the_run_goes_on(verbs, hooks, caplog, hook, handler):
    hooks(around_run, hook)
    hooks(around_run, restored)
    task_id = verbs.spawn(handler.call(), headers={"trace": "t"})
    with working(verbs.engine, VerbTask):
        assert verbs.ended(task_id).result == ["t", {"trace": "t"}]
    assert "run hook" in caplog.text


@pytest.mark.parametrize("handler", [app.fails, app.afails])
def test_a_run_hook_can_not_hide_how_the_run_ends(verbs, hooks, handler):
    hooks(around_run, lambda task: Swallows())
    hooks(around_run, lambda task: Fails(entering=False))
    failing, sleeping = verbs.spawn(handler.call(how="Fail")), verbs.spawn(app.sleeps_once.call())
    with working(verbs.engine, VerbTask):
        failed, slept = verbs.ended(failing, sleeping)
    assert (failed.state, failed.error["type"]) == ("failed", "Fail")
    assert slept.result == "awake"


def unstorable(spawning: Spawning) -> None:
    spawning.headers["object"] = object()


def reserved(spawning: Spawning) -> None:
    spawning.headers["durable:x"] = 1


def changes_then_raises(spawning: Spawning) -> None:
    spawning.headers.clear()
    raise ValueError("a hook's own")


@pytest.mark.parametrize("hook", [raises, unstorable, reserved, changes_then_raises])
def test_a_spawn_hook_that_fails_is_logged_and_leaves_the_headers_alone(verbs, hooks, caplog, hook):
    hooks(before_spawn, hook)
    hooks(before_spawn, trace)
    own = {"own": 1}
    task_id = verbs.spawn(app.tells.call(), headers=own)
    assert verbs.task(task_id).headers == {"own": 1, "trace": "verbs.tells"} and own == {"own": 1}
    assert "spawn hook" in caplog.text


def test_hooks_see_headers_in_registration_order_and_may_remove_them(verbs, hooks):
    hooks(before_spawn, trace)
    hooks(before_spawn, lambda spawning: spawning.headers.pop("own"))
    task_id = verbs.spawn(app.tells.call(), headers={"own": 1})
    assert verbs.task(task_id).headers == {"trace": "verbs.tells"}


def test_headers_of_hooks_are_no_part_of_a_derived_key(verbs, hooks):
    first = verbs.spawn(app.tells.call(), only_once=True)
    hooks(before_spawn, trace)
    assert verbs.spawn(app.tells.call(), only_once=True) == first


def test_a_removed_hook_is_asked_no_more_and_an_unknown_one_is_an_error(verbs):
    remove_hook(before_spawn(trace))
    remove_hook(around_run(restored))
    task_id = verbs.spawn(app.tells.call())
    assert verbs.task(task_id).headers is None
    with pytest.raises(ValueError):
        remove_hook(trace)
