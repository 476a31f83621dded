"""What tasks carry is in the database, and in no log; errors name places, not values."""

from __future__ import annotations

import logging
import threading
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_durable import (
    AsyncTaskContext,
    Call,
    Durable,
    DurableTask,
    Fail,
    Fixed,
    NoRetry,
    TaskContext,
    TaskState,
    Worker,
    once_key,
    wait_for,
)
from sa_durable.runtime.connections.errors import describe_for_log
from sa_durable.telemetry import around_run, before_spawn, remove_hook
from tests.databases import throwaway

SECRET = "hunter2-correct-horse"


class Base(DeclarativeBase):
    pass


class SecretTask(DurableTask, Base):
    __queue__ = "secrets"


@dataclass
class Card:
    number: int
    kind: Literal["debit", "credit"] = "debit"


class Opaque:
    def __repr__(self) -> str:
        return SECRET


def value() -> str:
    return SECRET


async def avalue() -> str:
    return SECRET


def writes(session: Session) -> None:
    session.execute(text("SELECT CAST(:it AS uuid)"), {"it": SECRET})  # PostgreSQL's message quotes it


@SecretTask.handler(retry=NoRetry())
def carries(ctx: TaskContext, secret: str, then: str) -> Any:
    assert ctx.headers["secret"] == ctx.step("it", value) == secret
    ctx.emit_event(f"from {ctx.task_id}", secret)
    assert ctx.await_event(f"from {ctx.task_id}") == secret
    match then:
        case "raise":
            raise ValueError(secret)
        case "fail":
            raise Fail(secret, it=secret)
        case "write":
            ctx.transaction("write", writes)
        case "unstorable":
            return {"it": secret, "not": float("nan")}
        case "spawn":
            ctx.spawn(
                carries.call(secret=secret, then=""), headers={"secret": secret}, idempotency_key=secret
            )
            raise ExceptionGroup(secret, [ValueError(secret)])
    return secret


@SecretTask.handler(retry=Fixed(timedelta(0)), max_attempts=2, timeout=timedelta(seconds=5))
async def acarries(ctx: AsyncTaskContext, secret: str) -> str:
    assert await ctx.step("it", avalue) == secret
    await ctx.transaction("write", writes)
    return secret


@SecretTask.handler()
def typed(ctx: TaskContext, card: Card, cards: list[Card] | None = None, anything: Any = None) -> None: ...


@pytest.fixture(scope="module")
def quiet(server_url):
    """An application's engine, with the setting that SQLAlchemy has for this."""
    with throwaway(server_url, Base.metadata) as engine:
        quiet = create_engine(engine.url, hide_parameters=True, logging_name="the application")
        yield quiet
        quiet.dispose()


@contextmanager
def hooks():
    @before_spawn
    def fails(_):
        raise RuntimeError("of a hook")

    @around_run
    @contextmanager
    def too(_):
        yield

    yield
    remove_hook(fails)
    remove_hook(too)


def said(records: list[logging.LogRecord]) -> str:
    """All that handlers could write of these records, tracebacks and the objects behind them included."""
    form = logging.Formatter("%(name)s %(levelname)s %(message)s %(threadName)s")
    lines = []
    for record in records:
        lines += [form.format(record), repr(record.args), repr(record.__dict__.get("exc_info"))]
    return "\n".join(lines)


def test_at_level_debug_nothing_of_what_tasks_carry_is_in_any_log(quiet, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("sa_durable", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "psycopg", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    worker = Worker(quiet, [SecretTask], concurrency=4, poll_interval=timedelta(milliseconds=20))
    thread = threading.Thread(target=worker.run)
    thread.start()
    headers = {"secret": SECRET}
    ends: dict[str, TaskState] = {}
    try:
        with hooks():
            tasks = {}
            for then in ("", "raise", "fail", "write", "unstorable", "spawn"):
                call = carries.call(secret=SECRET, then=then)
                with Session(quiet) as session, session.begin():
                    durable = Durable(session)
                    tasks[then] = durable.spawn(call, headers=headers, idempotency_key=f"{SECRET} {then}")
                    durable.spawn(call, headers=headers, idempotency_key=f"{SECRET} {then}")
                    durable.emit_event(SecretTask, f"{then} happened", {"secret": SECRET})
                    durable.release_key(SecretTask, SECRET)
            with Session(quiet) as session, session.begin():
                tasks["async"] = Durable(session).spawn(acarries.call(secret=SECRET), only_once=True)
                Durable(session).release_key(SecretTask, once_key("acarries", {"secret": SECRET}))
        for name, task in tasks.items():
            ends[name] = wait_for(quiet, task, timeout=timedelta(seconds=60)).state
    finally:
        worker.request_stop()
        thread.join(20)
    failed = ("raise", "fail", "write", "unstorable", "spawn", "async")
    assert ends == {"": "completed", **dict.fromkeys(failed, "failed")}

    # With SQLAlchemy's DEBUG on its own engine, an application sees the rows that it reads itself.
    own = [
        r for r in caplog.records if r.name.endswith("Engine.the application") and r.levelno <= logging.DEBUG
    ]
    rest = [r for r in caplog.records if r not in own]
    assert {r.name for r in rest} >= {
        "sa_durable",
        "sa_durable.worker",
        "sqlalchemy.engine.Engine.sa_durable",
        "sqlalchemy.engine.Engine.the application",
    }
    assert len(rest) > 200
    told = said(rest)
    assert SECRET not in told, [line for line in told.splitlines() if SECRET in line][:5]
    for sign in (
        "duplicate spawn of secrets.carries",
        "(ValueError); ",
        "(Fail); ",
        "(DataError); ",
    ):
        assert sign in told  # they were said, without it


BAD: dict[str, Any] = {
    "a param of another type": lambda d: typed.call(card=SECRET),
    "a field of another type": lambda d: typed.call(card={"number": SECRET, "kind": SECRET}),
    "a field within a list": lambda d: typed.call(card=Card(1), cards=[{"number": 1}, {"number": SECRET}]),
    "a param that there isn't": lambda d: typed.call_with({"card": Card(1), "more": SECRET}),
    "an instance with other content": lambda d: typed.call(card=Card(SECRET)),
    "no JSON": lambda d: typed.call(card=Card(1), anything=Opaque()),
    "no JSON within": lambda d: typed.call(card=Card(1), anything=[SECRET, {"x": {SECRET}}, float("nan")]),
    "a NUL character": lambda d: typed.call(card=Card(1), anything=f"{SECRET}\0"),
    "too large": lambda d: typed.call(card=Card(1), anything=SECRET * 100_000),
    "by name": lambda d: d.spawn(SecretTask, "typed", {"card": SECRET}),
    "by an unknown name": lambda d: d.spawn(SecretTask, "elsewhere", {"x": [SECRET, Opaque()]}),
    "params that are none": lambda d: d.spawn(SecretTask, "elsewhere", [SECRET]),
    "headers that are none": lambda d: d.spawn(typed.call(card=Card(1)), headers=SECRET),
    "a header that is no JSON": lambda d: d.spawn(typed.call(card=Card(1)), headers={"x": {SECRET}}),
    "headers that are too large": lambda d: d.spawn(typed.call(card=Card(1)), headers={"x": SECRET * 10_000}),
    "columns that are none": lambda d: d.spawn(typed.call(card=Card(1)), columns=SECRET),
    "columns that there aren't": lambda d: d.spawn(typed.call(card=Card(1)), columns={"x": SECRET}),
    "an event's payload": lambda d: d.emit_event(SecretTask, "x", {"x": [SECRET, Opaque()]}),
    "a payload that is too large": lambda d: d.emit_event(SecretTask, "x", SECRET * 100_000),
    "stored params that don't fit": lambda d: typed.arguments({"card": {"number": SECRET}, "more": SECRET}),
    "stored params that are no object": lambda d: typed.arguments([SECRET]),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_error_about_a_value_says_where_it_is_and_not_what(scratchless, bad):
    with pytest.raises(Exception) as refused:
        BAD[bad](scratchless)
    assert type(refused.value).__module__ == "sa_durable.errors"
    told = "".join(traceback.format_exception(refused.value)) + repr(refused.value.__cause__)
    assert SECRET not in told


@pytest.fixture
def scratchless() -> Durable:
    """A session that nothing is sent through."""
    return Durable(Session(create_engine("postgresql+psycopg://nobody@/nothing?host=/nowhere")))


def test_a_call_and_a_claim_can_be_shown(quiet):
    call: Call[Any, Any] = carries.call(secret=SECRET, then="").using(headers={"secret": SECRET})
    assert "carries" in repr(call) and SECRET not in repr(call)


def test_what_postgresql_says_about_data_is_not_repeated(engine: Engine):
    for statement, code in (("SELECT CAST(:x AS uuid)", "22P02"), ("SELECT CAST(:x AS jsonb)", "22P02")):
        with engine.connect() as connection, pytest.raises(Exception) as refused:
            connection.execute(text(statement), {"x": SECRET})
        assert SECRET in str(refused.value)  # SQLAlchemy's own text
        assert code in describe_for_log(refused.value) and SECRET not in describe_for_log(refused.value)
