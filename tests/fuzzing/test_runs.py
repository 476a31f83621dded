"""C12: whatever a handler returns, saves or raises, its task ends; with what it returned, if JSON can say that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import Durable, DurableTask, NoRetry, TaskState
from sa_durable.testing import run_until_idle
from tests.databases import throwaway
from tests.fuzzing.values import HOW, anything, is_json, same, size, texts

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore:Generating overly large repr")]
VALUES: list[Any] = []


class Base(DeclarativeBase):
    pass


class FuzzTask(DurableTask, Base):
    __queue__ = "fuzz"


@FuzzTask.handler(retry=NoRetry())
def returns(ctx) -> Any:
    return VALUES[-1]


@FuzzTask.handler(retry=NoRetry())
async def areturns(ctx) -> Any:
    return VALUES[-1]


@FuzzTask.handler(retry=NoRetry())
def saves(ctx) -> Any:
    return ctx.step("s", lambda: VALUES[-1])


@FuzzTask.handler(retry=NoRetry())
async def asaves(ctx) -> Any:
    async def step() -> Any:
        return VALUES[-1]

    return await ctx.step("s", step)


@FuzzTask.handler(retry=NoRetry())
def raises(ctx) -> None:
    raise RuntimeError(VALUES[-1])


@FuzzTask.handler(retry=NoRetry())
async def araises(ctx) -> None:
    raise RuntimeError(VALUES[-1])


@pytest.fixture(scope="module")
def fuzzed(server_url) -> Iterator[Engine]:
    with throwaway(server_url, Base.metadata) as engine:
        yield engine


def end(engine: Engine, handler: Any, value: Any) -> Any:
    VALUES[:] = [value]
    with Session(engine) as session, session.begin():
        spawned = Durable(session).spawn(handler.call())
    run_until_idle(engine, FuzzTask)
    with Session(engine) as session:
        return Durable(session).result(spawned)


@pytest.mark.parametrize("handler", [returns, areturns, saves, asaves], ids=lambda h: h.name)
def test_a_task_completes_with_what_can_be_stored_and_fails_with_what_cant(fuzzed, handler):
    @HOW
    @given(anything)
    def try_(value: Any) -> None:
        found = end(fuzzed, handler, value)
        fine = is_json(value)
        if fine and size(value) < 2**20 - 1000:
            assert found.state is TaskState.COMPLETED
            assert same(found.value, value)
        elif fine is False:
            assert (found.state, found.error.type) == (TaskState.FAILED, "InvalidResult")
        else:
            assert found.state.terminal

    try_()


@pytest.mark.parametrize("handler", [raises, araises], ids=lambda h: h.name)
def test_a_task_fails_whatever_its_error_says(fuzzed, handler):
    @HOW
    @given(texts | anything)
    def try_(value: Any) -> None:
        found = end(fuzzed, handler, value)
        assert (found.state, found.error.type) == (TaskState.FAILED, "RuntimeError")
        with suppress(RecursionError, ValueError):
            assert found.error.message or not str(value)

    try_()
