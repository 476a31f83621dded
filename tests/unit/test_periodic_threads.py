"""Threads that outlive the database's absence: how often they try, and how much they say."""

from __future__ import annotations

import logging
import re
from itertools import pairwise

import pytest
from sqlalchemy.exc import OperationalError

from sa_durable.runtime.threads import periodic
from sa_durable.runtime.threads.periodic import FIRST_PAUSE_S, REMINDER_INTERVAL_S, PeriodicThread

AWAY = OperationalError("SELECT 'a row'", None, Exception("connection refused\n\tand more"))


class Time:
    """A clock that passes only while somebody waits: also the chore's stop event, which is set at the `end`."""

    def __init__(self, end: float) -> None:
        self.now, self.end = 1000.0, 1000.0 + end
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return self.now >= self.end

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def spend(monkeypatch, caplog):
    """Runs a chore for so many seconds of a clock of its own: what it waited for after failures."""

    def spend(seconds, work, **options):
        time = Time(seconds)
        monkeypatch.setattr(periodic, "monotonic", lambda: time.now)
        chore = PeriodicThread("claimer", lambda: work(time.now - 1000), **options)
        chore._stop = time
        with caplog.at_level(logging.INFO, "sa_durable.worker"):
            chore._run()
        return time.waits

    return spend


def away(_: float) -> None:
    raise AWAY


@pytest.mark.parametrize("longest", [1, 5])
def test_ten_minute_outage_costs_growing_pauses_and_few_log_lines(spend, caplog, longest):
    waits = spend(600, away, longest_pause=longest)
    assert FIRST_PAUSE_S / 2 <= waits[0] <= FIRST_PAUSE_S
    assert all(
        later >= earlier for earlier, later in pairwise(waits[:5])
    )  # each twice the last, less up to half
    assert all(longest / 2 <= wait <= longest for wait in waits[10:])
    assert 600 / longest <= len(waits) <= 2 * 600 / longest + 20
    assert len(caplog.records) <= 1 + 600 / REMINDER_INTERVAL_S
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "thread failed: claimer (Exception connection refused); next try in 0.0" in caplog.messages[0]
    assert "Exception connection refused, for 5" in caplog.messages[-1]
    assert "a row" not in caplog.text and "and more" not in caplog.text


def test_workers_that_were_cut_off_together_dont_come_back_together(spend):
    assert len({tuple(spend(60, away)) for _ in range(20)}) == 20


def test_the_return_is_said_and_the_next_outage_begins_with_short_pauses(spend, caplog):
    outages = iter([True] * 20 + [False] + [True] * 10)

    def work(_: float) -> float:
        if next(outages, True):
            raise AWAY
        return 0

    waits = spend(120, work)
    assert waits[19] > 2 and waits[20] <= FIRST_PAUSE_S
    (back,) = [message for message in caplog.messages if "recovered" in message]
    assert back.startswith("thread recovered: claimer (after ") and back.endswith(" s and 20 failures)")


def test_trouble_that_becomes_another_is_said_at_once(spend, caplog):
    def work(at: float) -> None:
        if at < 5:
            raise AWAY
        raise OperationalError("", None, Exception("the database system is starting up"))

    spend(20, work)
    assert len(caplog.records) == 2
    assert re.search(r"starting up, for \d+ s and \d+ failures\); next try in \d.\d\d s$", caplog.messages[1])


def test_a_bug_is_logged_with_its_place_and_the_thread_goes_on(spend, caplog):
    def work(_: float) -> None:
        raise ZeroDivisionError

    assert len(spend(100, work)) > 20
    assert len(caplog.records) <= 5 and caplog.records[0].levelname == "ERROR"
    assert "ZeroDivisionError" in caplog.text and "in work" in caplog.text
