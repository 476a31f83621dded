"""Which of the library's own transactions are run again, and for how long."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from types import SimpleNamespace

import asyncpg
import pytest
import tenacity
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sa_durable import RetryTransaction, SchemaOutdated
from sa_durable.runtime.connections import retrying
from sa_durable.runtime.connections.errors import is_transient
from sa_durable.runtime.connections.retrying import (
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    backoff,
    retry_transient,
    retry_until,
    retry_until_async,
)


class Refused(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


PASSING = [
    DBAPIError("COMMIT", None, Refused("40001")),  # as asyncpg's dialect has it
    OperationalError("COMMIT", None, Refused("40P01")),
    DBAPIError("", None, Exception(), connection_invalidated=True),
    OperationalError("", None, Exception("connection refused")),
    DBAPIError("", None, Refused("53100")),  # the disk is full
    RetryTransaction("", "40001"),
    PoolTimeoutError(),
    ConnectionRefusedError(),
    asyncpg.CannotConnectNowError("starting up"),
]
FINAL = [
    IntegrityError("", None, Refused("23505")),
    ProgrammingError("", None, Refused("42501")),
    SchemaOutdated(),
    asyncpg.InvalidPasswordError(),
    ValueError(),
]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(retrying.backoff, "__kwdefaults__", {"first": 0.001, "longest": 0.001})


class Work:
    """Fails with these errors in turn, then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def awaited(self) -> str:
        return self()


def everywhere(work: Work, kind: str, **options) -> str:
    if kind == "async":
        return asyncio.run(retry_until_async("it", work.awaited, **options))
    return retry_until("it", work, **options) if kind == "plain" else retry_transient(work, lambda _: 0)


KINDS = pytest.mark.parametrize("kind", ["again", "plain", "async"])


@KINDS
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_run_again(kind, error):
    work = Work(error, error, error)
    assert is_transient(error) and everywhere(work, kind) == "done" and work.calls == 4


@KINDS
@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_doesnt_is_raised_as_it_is_at_once(kind, error):
    work = Work(PASSING[0], error)
    with pytest.raises(type(error)) as raised:
        everywhere(work, kind)
    assert raised.value is error and work.calls == 2 and not is_transient(error)


@KINDS
def test_what_stops_a_program_or_a_run_is_passed_on(kind):
    with pytest.raises(KeyboardInterrupt):
        everywhere(Work(PASSING[0], KeyboardInterrupt()), kind)


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_patience_has_an_end_and_then_the_error_is_the_last_one(kind, caplog, monkeypatch):
    ticks = count()  # a twentieth of a second passes from each look at the clock to the next
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 20))
    work = Work(*[OperationalError("", None, Exception("refused"))] * 10**6)
    with pytest.raises(OperationalError), caplog.at_level(logging.INFO, "sa_durable"):
        everywhere(work, kind, limit=0.2)
    assert 2 <= work.calls <= 5
    assert caplog.messages == ["database error: it (Exception refused); retrying for up to 0.2 s"]


def test_pauses_double_up_to_a_cap_less_up_to_half_by_chance(monkeypatch):
    monkeypatch.undo()
    for failures in (1, 2, 3, 5, 10, 10_000):
        full = min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 60), LONGEST_PAUSE_S)
        drawn = [backoff(failures) for _ in range(100)]
        assert all(full / 2 <= pause <= full for pause in drawn) and len(set(drawn)) > 50
