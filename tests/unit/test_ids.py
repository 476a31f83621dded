"""Ids are UUIDv7 (RFC 9562, section 5.7): made by any client, in the order of time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from uuid import RFC_4122, UUID

import pytest

from sa_durable import ids
from sa_durable.ids import uuid7, uuid7_bytes


@pytest.fixture(autouse=True)
def _no_memory(monkeypatch):
    """A test that moves the clock leaves no later id behind. (Python 3.14 has its own.)"""
    monkeypatch.setattr(ids, "_last", 0, raising=False)


def _milliseconds(value: UUID) -> int:
    return value.int >> 80


def test_version_and_variant_are_those_of_the_rfc():
    for value in (uuid7() for _ in range(1000)):
        assert (value.version, value.variant) == (7, RFC_4122)


def test_id_carries_the_unix_time_in_milliseconds():
    before = time.time_ns() // 1_000_000
    made = _milliseconds(uuid7())
    assert before <= made <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("later", [1, 1000, 86_400_000])
def test_later_ids_sort_after_earlier_ones(monkeypatch, later):
    start = 1_767_225_600_000
    clock = iter([start * 1_000_000, (start + later) * 1_000_000])
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(clock))
    first, second = uuid7(), uuid7()
    assert first < second
    assert str(first) < str(second)
    assert (_milliseconds(first), _milliseconds(second)) == (start, start + later)


def test_ids_sort_as_text_as_they_do_as_numbers():
    made = [uuid7() for _ in range(1000)]
    assert sorted(made) == sorted(made, key=str) == sorted(made, key=lambda value: value.bytes)


def test_ids_of_one_millisecond_differ(monkeypatch):
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_767_225_600_000_000_000)
    assert len({uuid7() for _ in range(20_000)}) == 20_000


def test_ids_of_many_threads_differ():
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [uuid7() for _ in range(500)], range(16)))
    assert len(set().union(*made)) == 16 * 500


def test_every_random_bit_is_used(monkeypatch):
    clock = count(time.time_ns(), 1_000_000)  # a millisecond for each: within one they count upwards
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(clock))
    made = [uuid7().int for _ in range(500)]
    fixed = 0xF << 76 | 0x3 << 62
    random = (1 << 80) - 1 & ~fixed
    ever = never = 0
    for value in made:
        ever |= value
        never |= ~value
    assert (ever & random, never & random) == (random, random)


def test_ids_of_one_millisecond_are_in_the_order_of_their_making():
    made = [uuid7() for _ in range(10_000)]
    assert made == sorted(made)


def test_batch_ids_sort_between_earlier_and_later_ids():
    made = [uuid7(), *_apart(uuid7_bytes(2000)), uuid7()]
    assert made == sorted(set(made))
    assert all((value.version, value.variant) == (7, RFC_4122) for value in made)
    assert uuid7_bytes(0) == b""


def test_ids_of_a_batch_are_in_order_where_their_lower_halves_are_used_up(monkeypatch):
    clock = iter(
        [1_767_225_600_000_000_000] * 3
    )  # three draws in a millisecond: two, if none were drawn again
    monkeypatch.setattr(ids.time, "time_ns", lambda: next(clock))
    monkeypatch.setattr(ids, "_last", (1_767_225_600_000 << 74) + 2**62 - 2**33, raising=False)
    made = [*_apart(uuid7_bytes(100)), uuid7()]
    assert made == sorted(set(made))
    assert all((value.version, value.variant) == (7, RFC_4122) for value in made)


def _apart(batch: bytes) -> list[UUID]:
    return [UUID(bytes=batch[start : start + 16]) for start in range(0, len(batch), 16)]


def test_batches_of_many_threads_share_no_id(monkeypatch):
    monkeypatch.setattr(ids.time, "time_ns", lambda: 1_767_225_600_000_000_000)
    with ThreadPoolExecutor(8) as threads:
        made = [
            made for batch in threads.map(lambda _: uuid7_bytes(500), range(16)) for made in _apart(batch)
        ]
    assert len(set(made)) == len(made)
