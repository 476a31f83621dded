"""Which part of the ready index a claim reads, decided from what earlier claims found, and when."""

from __future__ import annotations

from datetime import timedelta
from math import inf

import pytest

from sa_durable.services.watermark import (
    ALWAYS,
    FULL_SCAN_INTERVAL_S,
    HIGHEST,
    LATE_COMMIT_S,
    LOWEST,
    MAX_PRIORITIES,
    ClaimWatermark,
    ScanRange,
)

MS = timedelta(milliseconds=1)


class Claims:
    """Claims of up to ten tasks at the times of a clock."""

    def __init__(self, **options: float) -> None:
        self.time = 100.0
        self.watermark = ClaimWatermark(lambda: self.time, **options)

    def claim(
        self,
        number: int,
        *,
        waited: timedelta = MS,
        priorities: tuple[int, ...] = (0,),
    ) -> None:
        found = [(priorities[i * len(priorities) // number], waited) for i in range(number)]
        sent, reach = self.time, self.watermark.scan_ranges()
        self.watermark.record_claim(sent, reach, limit=10, found=found)

    @property
    def within(self) -> dict[int, float] | None:
        """Seconds, by priority; all that is within reach of others is looked at. None: everything."""
        reach = self.watermark.scan_ranges()
        if reach is None:
            return None
        assert [part.low for part in reach] == [LOWEST, *(part.high + 1 for part in reach[:-1])]
        assert reach[-1].high == HIGHEST
        return {part.low: round(part.within.total_seconds(), 6) for part in reach if part.within != ALWAYS}


@pytest.fixture
def claims() -> Claims:
    return Claims()


def test_the_first_claim_is_a_full_scan(claims):
    assert claims.within is None


def test_after_a_claim_below_its_limit_the_next_reads_what_came_since(claims):
    claims.claim(3)
    claims.time += 0.25
    assert claims.within == {0: 0.25 + LATE_COMMIT_S}
    claims.claim(9)
    claims.time += 0.5
    assert claims.within == {0: 0.5 + LATE_COMMIT_S}


def test_priorities_without_a_watermark_are_read_whole(claims):
    claims.claim(2, priorities=(-1, 0))
    assert claims.watermark.scan_ranges() == [
        ScanRange(LOWEST, -2, ALWAYS),
        ScanRange(-1, -1, timedelta(seconds=LATE_COMMIT_S)),
        ScanRange(0, 0, timedelta(seconds=LATE_COMMIT_S)),
        ScanRange(1, HIGHEST, ALWAYS),
    ]


def test_lowest_and_highest_priority_can_have_a_watermark(claims):
    claims.claim(2, priorities=(LOWEST, HIGHEST))
    assert [(part.low, part.high) for part in claims.watermark.scan_ranges()] == [
        (LOWEST, LOWEST),
        (LOWEST + 1, HIGHEST - 1),
        (HIGHEST, HIGHEST),
    ]


def test_the_priorities_that_were_found_last_keep_their_watermarks(claims):
    claims.claim(9, priorities=tuple(range(9)))
    assert set(claims.within) == set(range(9 - MAX_PRIORITIES, 9))
    claims.claim(2, priorities=(0, 1))
    assert {0, 1} < set(claims.within)
    assert len(claims.within) == MAX_PRIORITIES


def test_after_a_claim_at_its_limit_the_next_begins_at_its_last_task(claims):
    claims.claim(10, waited=timedelta(seconds=30))
    claims.time += 0.5
    assert claims.within == {0: 30.5 + LATE_COMMIT_S}
    claims.claim(10, waited=timedelta(seconds=20))
    assert claims.within == {0: 20 + LATE_COMMIT_S}


def test_a_last_task_without_a_due_time_comes_after_all_others(claims):
    claims.claim(10, waited=timedelta(days=-1_000_000))
    assert claims.within == {0: LATE_COMMIT_S}


def test_a_backlog_that_was_claimed_to_its_end_is_not_read_again(claims):
    claims.claim(10, waited=timedelta(seconds=30))
    claims.claim(3)
    claims.time += 0.5
    assert claims.within == {0: 0.5 + LATE_COMMIT_S}


def test_a_claim_at_its_limit_says_nothing_about_less_urgent_tasks(claims):
    claims.claim(10, priorities=(0, 5), waited=timedelta(seconds=30))
    assert claims.within == {0: LATE_COMMIT_S, 5: 30 + LATE_COMMIT_S}
    claims.claim(10, waited=MS)
    claims.time += 0.25
    assert claims.within == {0: round(0.25 + 0.001 + LATE_COMMIT_S, 6), 5: 30.25 + LATE_COMMIT_S}, "as before"
    claims.time += FULL_SCAN_INTERVAL_S
    claims.claim(10)
    assert set(claims.within) == {0}


def test_after_a_claim_that_found_nothing_the_next_reads_what_came_since(claims):
    claims.claim(3)
    claims.time += 0.25
    claims.claim(0)
    claims.time += 0.25
    assert claims.within == {0: 0.25 + LATE_COMMIT_S}


def test_a_busy_queue_has_a_full_scan_in_each_interval(claims):
    claims.claim(3)
    for _ in range(3):
        claims.time += FULL_SCAN_INTERVAL_S / 4
        assert claims.within is not None
        claims.claim(3)
    claims.time += FULL_SCAN_INTERVAL_S / 4
    assert claims.within is None


def test_a_full_scan_is_pending_after_a_claim_that_found_nothing(claims):
    claims.claim(3)
    assert claims.watermark.full_scan_due_in() == inf
    claims.time += 0.5
    claims.claim(0)
    assert claims.watermark.full_scan_due_in() == FULL_SCAN_INTERVAL_S - 0.5
    claims.claim(3)
    claims.time += 10
    assert claims.watermark.full_scan_due_in() == 0
    claims.claim(0)
    assert claims.watermark.full_scan_due_in() == inf


def test_only_claims_that_found_tasks_count_as_recent(claims):
    assert claims.watermark.seconds_since_found == inf
    claims.claim(3)
    claims.time += 0.5
    claims.claim(0)
    assert claims.watermark.seconds_since_found == 0.5


def test_without_an_interval_each_claim_is_a_full_scan():
    claims = Claims(full_scan_interval_s=0)
    for _ in range(3):
        claims.claim(3)
        assert claims.within is None
