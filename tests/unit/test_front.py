"""What a claim need not look at again: decided from what earlier ones found, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sa_durable.services.front import EVERYTHING, LATE, Front

MS = timedelta(milliseconds=1)


class Claims:
    """Claims of up to ten tasks at the times of a clock."""

    def __init__(self) -> None:
        self.time = 100.0
        self.front = Front(lambda: self.time)

    def claim(self, number: int, *, waited: timedelta = MS, priorities: tuple[int, ...] = (0,)) -> None:
        found = [(priorities[i * len(priorities) // number], waited) for i in range(number)]
        self.front.claimed(self.time, self.front.within(), limit=10, found=found)

    @property
    def within(self) -> float | None:
        """Seconds."""
        within = self.front.within()
        return None if within is None else round(within.total_seconds(), 6)


@pytest.fixture
def claims() -> Claims:
    return Claims()


def test_the_first_claim_looks_at_everything(claims):
    assert claims.within is None


def test_after_a_claim_that_found_less_than_it_asked_for_the_next_looks_at_what_came_since(claims):
    claims.claim(3)
    claims.time += 0.25
    assert claims.within == 0.25 + LATE
    claims.claim(9)
    claims.time += 0.5
    assert claims.within == 0.5 + LATE


def test_after_one_that_found_all_it_asked_for_the_next_begins_at_its_last(claims):
    claims.claim(10, waited=timedelta(seconds=30))
    claims.time += 0.5
    assert claims.within == 30.5 + LATE
    claims.claim(10, waited=timedelta(seconds=20))
    assert claims.within == 20 + LATE


def test_a_backlog_that_begins_anew_moves_nothing_until_the_next_look_at_everything(claims):
    claims.claim(3)
    claims.time += 0.25
    claims.claim(10)
    claims.time += 0.25
    claims.claim(10)
    assert claims.within == 0.5 + LATE


def test_less_urgent_tasks_may_be_older_so_a_batch_that_reached_them_says_nothing(claims):
    claims.claim(10, priorities=(0, 5))
    assert claims.within is None


def test_what_begins_at_a_last_task_and_finds_less_is_no_reason_to_believe_that_all_is_taken(claims):
    claims.claim(10)
    claims.claim(3)
    assert claims.within is None


@pytest.mark.parametrize("before", [3, 10])
def test_after_a_claim_that_found_nothing_the_next_looks_at_everything(claims, before):
    claims.claim(before)
    claims.claim(0)
    assert claims.within is None


def test_everything_is_looked_at_once_in_a_while_however_busy_it_is(claims):
    claims.claim(3)
    for _ in range(3):
        claims.time += EVERYTHING / 4
        assert claims.within is not None
        claims.claim(3)
    claims.time += EVERYTHING / 4
    assert claims.within is None
