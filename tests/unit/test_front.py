"""What a claim need not look at again: decided from what earlier ones found, and when."""

from __future__ import annotations

from datetime import timedelta
from math import inf

import pytest

from sa_durable.services.watermark import (
    ALWAYS,
    DEAR,
    FULL_SCAN_INTERVAL_S,
    HIGHEST,
    LATE_COMMIT_S,
    LOWEST,
    OFTEN,
    PRIORITIES,
    RARELY,
    ClaimWatermark,
    ScanRange,
)

MS = timedelta(milliseconds=1)


class Claims:
    """Claims of up to ten tasks at the times of a clock."""

    def __init__(self) -> None:
        self.time = 100.0
        self.front = ClaimWatermark(lambda: self.time)

    def claim(
        self,
        number: int,
        *,
        waited: timedelta = MS,
        priorities: tuple[int, ...] = (0,),
        took: float = 0.0,
    ) -> None:
        found = [(priorities[i * len(priorities) // number], waited) for i in range(number)]
        sent, reach = self.time, self.front.reach()
        self.time += took
        self.front.claimed(sent, reach, limit=10, found=found)

    @property
    def within(self) -> dict[int, float] | None:
        """Seconds, by priority; all that is within reach of others is looked at. None: everything."""
        reach = self.front.reach()
        if reach is None:
            return None
        assert [part.low for part in reach] == [LOWEST, *(part.high + 1 for part in reach[:-1])]
        assert reach[-1].high == HIGHEST
        return {part.low: round(part.within.total_seconds(), 6) for part in reach if part.within != ALWAYS}


@pytest.fixture
def claims() -> Claims:
    return Claims()


def test_the_first_claim_looks_at_everything(claims):
    assert claims.within is None


def test_after_a_claim_that_found_less_than_it_asked_for_the_next_looks_at_what_came_since(claims):
    claims.claim(3)
    claims.time += 0.25
    assert claims.within == {0: 0.25 + LATE_COMMIT_S}
    claims.claim(9)
    claims.time += 0.5
    assert claims.within == {0: 0.5 + LATE_COMMIT_S}


def test_priorities_that_nobody_has_seen_are_within_reach_whatever_their_age(claims):
    claims.claim(2, priorities=(-1, 0))
    assert claims.front.reach() == [
        ScanRange(LOWEST, -2, ALWAYS),
        ScanRange(-1, -1, timedelta(seconds=LATE_COMMIT_S)),
        ScanRange(0, 0, timedelta(seconds=LATE_COMMIT_S)),
        ScanRange(1, HIGHEST, ALWAYS),
    ]


def test_the_ends_of_what_priorities_there_are_can_be_seen_too(claims):
    claims.claim(2, priorities=(LOWEST, HIGHEST))
    assert [(part.low, part.high) for part in claims.front.reach()] == [
        (LOWEST, LOWEST),
        (LOWEST + 1, HIGHEST - 1),
        (HIGHEST, HIGHEST),
    ]


def test_so_many_priorities_are_kept_apart_those_that_were_found_last(claims):
    claims.claim(9, priorities=tuple(range(9)))
    assert set(claims.within) == set(range(9 - PRIORITIES, 9))
    claims.claim(2, priorities=(0, 1))
    assert {0, 1} < set(claims.within)
    assert len(claims.within) == PRIORITIES


def test_after_one_that_found_all_it_asked_for_the_next_begins_at_its_last(claims):
    claims.claim(10, waited=timedelta(seconds=30))
    claims.time += 0.5
    assert claims.within == {0: 30.5 + LATE_COMMIT_S}
    claims.claim(10, waited=timedelta(seconds=20))
    assert claims.within == {0: 20 + LATE_COMMIT_S}


def test_a_last_task_without_a_time_comes_after_all_others(claims):
    claims.claim(10, waited=timedelta(days=-1_000_000))
    assert claims.within == {0: LATE_COMMIT_S}


def test_a_backlog_that_is_taken_to_its_end_is_taken(claims):
    claims.claim(10, waited=timedelta(seconds=30))
    claims.claim(3)
    claims.time += 0.5
    assert claims.within == {0: 0.5 + LATE_COMMIT_S}


def test_of_less_urgent_tasks_than_the_last_of_a_full_batch_nothing_is_known(claims):
    claims.claim(10, priorities=(0, 5), waited=timedelta(seconds=30))
    assert claims.within == {0: LATE_COMMIT_S, 5: 30 + LATE_COMMIT_S}
    claims.claim(10, waited=MS)
    claims.time += 0.25
    assert claims.within == {0: round(0.25 + 0.001 + LATE_COMMIT_S, 6), 5: 30.25 + LATE_COMMIT_S}, "as before"
    claims.time += FULL_SCAN_INTERVAL_S
    claims.claim(10)
    assert set(claims.within) == {0}


def test_after_a_claim_that_found_nothing_the_next_looks_at_what_came_since(claims):
    claims.claim(3)
    claims.time += 0.25
    claims.claim(0)
    assert claims.front.due()
    claims.time += 0.25
    assert claims.within == {0: 0.25 + LATE_COMMIT_S}


def test_everything_is_looked_at_once_in_a_while_however_busy_it_is(claims):
    claims.claim(3)
    for _ in range(3):
        claims.time += FULL_SCAN_INTERVAL_S / 4
        assert claims.within is not None
        claims.claim(3)
    claims.time += FULL_SCAN_INTERVAL_S / 4
    assert claims.within is None


def nothing_then_everything(claims: Claims, everything: float, *, behind: float = 0.001) -> None:
    """A claim finds nothing behind the front, and then nothing at all; each took so many seconds."""
    claims.claim(0, took=behind)
    claims.front.claimed(claims.time - everything, None, limit=10, found=[])


@pytest.fixture
def dear(claims) -> Claims:
    """Looks at everything take 100 ms, and those behind the front 1 ms. The last one has just ended."""
    claims.claim(3)
    for _ in range(OFTEN):
        assert claims.front.due()
        nothing_then_everything(claims, 0.1)
    return claims


def test_a_look_that_is_dear_is_not_repeated_before_much_time_has_passed(dear):
    assert not dear.front.due()
    dear.time += RARELY - 0.11
    assert not dear.front.due()
    assert dear.within is not None
    dear.time += 0.02
    assert dear.front.due()
    assert dear.within is None


def test_a_claim_that_leaves_it_for_later_owes_it(dear):
    assert dear.front.owed() == inf
    dear.claim(0)
    assert dear.front.owed() == pytest.approx(RARELY - 0.1)
    dear.claim(3)
    dear.time += 10
    assert dear.front.owed() == 0
    dear.claim(0)
    assert dear.front.owed() == inf


def test_in_a_stream_of_claims_that_find_as_much_it_is_seen_that_a_look_is_dear(claims):
    claims.claim(3)
    for _ in range(OFTEN):
        claims.claim(3, took=0.001)
        assert claims.front.due()
        claims.time += FULL_SCAN_INTERVAL_S
        claims.claim(3, took=0.1)
    assert not claims.front.due()


def test_a_look_at_everything_that_finds_more_may_take_longer(claims):
    claims.claim(3)
    for _ in range(2 * OFTEN):
        claims.claim(3, took=0.001)
        claims.time += FULL_SCAN_INTERVAL_S
        claims.claim(4, took=0.1)
    assert claims.front.due()


def test_one_look_that_took_long_is_not_dear_and_one_that_is_quick_again_ends_it(claims):
    claims.claim(3)
    for _ in range(OFTEN):
        nothing_then_everything(claims, 0.1)
        nothing_then_everything(claims, DEAR * 0.001 - 0.0001)
        assert claims.front.due()


def test_where_a_look_costs_what_a_claim_does_each_claim_that_finds_nothing_looks_at_everything(claims):
    claims.claim(3)
    for _ in range(10):
        nothing_then_everything(claims, 0.1, behind=0.09)
        assert claims.front.due()


def test_a_look_of_somebody_else_counts_if_it_found_nothing(dear):
    dear.time += 10
    assert dear.front.due()
    dear.front.looked(dear.time, ready=False)
    assert not dear.front.due()


def test_what_somebody_else_found_is_claimed_at_once(dear):
    assert dear.within is not None
    dear.front.looked(dear.time, ready=True)
    assert dear.within is None
