"""When a transaction is run again, and when its error is the application's to see."""

from __future__ import annotations

from time import monotonic
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sa_durable import RetryTransaction
from sa_durable.runtime.context import transaction_retry
from sa_durable.runtime.context.transaction_retry import MAX_TRIES, TransactionRetry
from sa_durable.runtime.runs.active import ActiveRun
from sa_durable.services.checkpoints import AlreadySaved
from sa_durable.values import Claim
from tests.shop import MailTask


class Refused(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


LOST = DBAPIError("COMMIT", None, Exception(), connection_invalidated=True)
SERIALIZATION = OperationalError("COMMIT", None, Refused("40001"))
DEFERRED = IntegrityError("COMMIT", None, Refused("23503"))
AWAY = OperationalError("", None, Exception("connection refused"))


@pytest.fixture
def tries() -> TransactionRetry:
    claim = Claim("mail", uuid4(), uuid4(), "send", {}, None, 1, None, None, 1, resumed=False)
    return TransactionRetry(ActiveRun(MailTask, claim, monotonic() + 60))


def connect(tries: TransactionRetry, error: Exception | None = None) -> None:
    with tries.connecting():
        if error:
            raise error


def test_a_lost_answer_to_a_commit_is_in_doubt_for_as_long_as_it_takes(tries, monkeypatch):
    tries.committing = True
    assert tries.pause_after(LOST) is not None and tries.in_doubt and not tries.committing
    monkeypatch.setattr(transaction_retry, "monotonic", lambda: monotonic() + 3600)
    for error in (AWAY, ConnectionResetError(), SERIALIZATION, *MAX_TRIES * [LOST]):
        assert tries.pause_after(error) is not None and tries.in_doubt
    assert tries.pause_after(ValueError()) is None  # while it is looked up: a bug is no answer


def test_what_loses_its_connection_each_time_is_given_up(tries):
    """A statement that crashes the server must not do so for ever."""
    for _ in range(MAX_TRIES - 1):
        connect(tries)
        assert tries.pause_after(LOST) is not None
    connect(tries)
    assert tries.pause_after(LOST) is None


def test_commit_lost_each_time_is_given_up_once_it_is_known_failed(tries):
    for number in range(MAX_TRIES):
        connect(tries)
        tries.committing = True
        assert tries.pause_after(LOST) is not None and tries.in_doubt
        if number < MAX_TRIES - 1:
            tries.not_committed()
    with pytest.raises(DBAPIError) as error:
        tries.not_committed()
    assert tries.pause_after(error.value) is None


@pytest.mark.parametrize("error", [ConnectionResetError(), LOST])
def test_what_the_socket_raises_at_a_commit_is_in_doubt_too(tries, error):
    tries.committing = True
    assert tries.pause_after(error) is not None and tries.in_doubt


def test_an_answer_that_refuses_a_commit_leaves_no_doubt(tries):
    for error, again in ((SERIALIZATION, True), (DEFERRED, False), (ValueError("of a hook"), False)):
        tries.committing = True
        assert (tries.pause_after(error) is not None) is again and not tries.in_doubt


def test_a_record_that_is_there_already_is_read_at_once(tries):
    assert tries.pause_after(AlreadySaved(1)) is not None and tries.in_doubt


def test_lost_races_are_run_again_ten_times_at_growing_distances(tries):
    pauses = [tries.pause_after(RetryTransaction("", "40P01")) for _ in range(MAX_TRIES)]
    assert pauses[-1] is None and pauses[:5] == sorted(pauses[:5]) and max(pauses[:-1]) <= 1


def test_a_database_that_is_away_is_waited_for_but_not_for_ever(tries, monkeypatch):
    for error in (AWAY, ConnectionRefusedError()):
        with pytest.raises(type(error)):
            connect(tries, error)
        assert tries.pause_after(error) is not None
    monkeypatch.setattr(transaction_retry, "monotonic", lambda: monotonic() + 3600)
    with pytest.raises(OperationalError):
        connect(tries, AWAY)
    assert tries.pause_after(AWAY) is None


def test_errors_of_the_applications_own_are_not_run_again(tries):
    connect(tries)
    for error in (ConnectionResetError("its own call"), AWAY, DEFERRED, ValueError()):
        assert tries.pause_after(error) is None


def test_no_pause_outlasts_the_lease(tries):
    tries.run.deadline = monotonic()
    assert tries.pause_after(LOST) <= 0.002


def test_starting_server_counts_as_unavailable_with_asyncpg_too(tries):
    with pytest.raises(asyncpg.CannotConnectNowError):
        connect(tries, asyncpg.CannotConnectNowError("the database system is starting up"))
    assert tries.pause_after(asyncpg.CannotConnectNowError()) is not None
    with pytest.raises(asyncpg.InvalidPasswordError):
        connect(tries, asyncpg.InvalidPasswordError())
    assert tries.pause_after(asyncpg.InvalidPasswordError()) is None
