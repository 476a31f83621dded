"""Options from their layers, keys, and what follows a failure."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa_durable import (
    Exponential,
    Fixed,
    Hold,
    InvalidKey,
    InvalidOptions,
    NoRetry,
    OnDuplicate,
    SpawnOptions,
)
from sa_durable.policy import (
    GiveUp,
    RetryAfter,
    after_failure,
    after_lease_expired,
    check_key,
    check_retry,
    retry_delay,
    retry_from_json,
    retry_to_json,
)
from sa_durable.spawn_options import resolve
from sa_durable.values import SpawnKeywords

few = settings(max_examples=50, deadline=None)
SECOND = timedelta(seconds=1)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


# Layers


def test_options_without_any_layer_are_the_defaults():
    assert resolve() == resolve(None, {}, None) == SpawnOptions()


def test_keywords_are_the_fields_of_the_options():
    assert set(SpawnKeywords.__annotations__) == {field.name for field in fields(SpawnOptions)}


def test_first_layer_that_has_a_field_wins():
    options = resolve(
        {"priority": 1}, {"priority": 2, "max_attempts": 2}, {"max_attempts": 3, "retry": NoRetry()}
    )
    assert (options.priority, options.max_attempts, options.retry) == (1, 2, NoRetry())


def test_value_that_equals_the_default_still_wins():
    options = resolve({"priority": 0, "strict": False, "max_attempts": None}, {"priority": 9, "strict": True})
    assert (options.priority, options.strict, options.max_attempts) == (0, False, None)


def test_words_become_enums():
    options = resolve({"hold": "forever", "on_duplicate": "raise", "idempotency_key": "k"})
    assert (options.hold, options.on_duplicate) == (Hold.FOREVER, OnDuplicate.RAISE)
    assert isinstance(options.hold, Hold)
    assert isinstance(options.on_duplicate, OnDuplicate)


@pytest.mark.parametrize(
    "spawn, handler, delay, run_at",
    [
        ({}, {"delay": SECOND}, SECOND, None),
        ({"delay": 2 * SECOND}, {"delay": SECOND}, 2 * SECOND, None),
        ({"run_at": NOON}, {"delay": SECOND}, None, NOON),
        ({"delay": SECOND}, {"run_at": NOON}, SECOND, None),
        ({"delay": timedelta(0)}, {"run_at": NOON}, timedelta(0), None),
        ({"delay": None}, {"delay": SECOND}, None, None),
        ({"run_at": None}, {"run_at": NOON}, None, None),
        ({"run_at": None}, {"delay": SECOND}, SECOND, None),
    ],
)
def test_delay_and_run_at_are_one_choice(spawn, handler, delay, run_at):
    options = resolve(spawn, handler)
    assert (options.delay, options.run_at) == (delay, run_at)


def test_layers_are_left_as_they_were():
    layers: list[Any] = [{"delay": SECOND}, {"run_at": NOON, "priority": 1}]
    resolve(*layers)
    assert layers == [{"delay": SECOND}, {"run_at": NOON, "priority": 1}]


KEYED = {"idempotency_key": "k"}


@pytest.mark.parametrize(
    "keywords, complaint",
    [
        ({"max_tries": 3}, r"unknown spawn options \['max_tries'\]"),
        ({"hold": "always"}, "hold='always' must be one of 'active'.*'forever'"),
        ({"on_duplicate": "ignore"}, "on_duplicate='ignore' must be one of 'return'"),
        ({**KEYED, "key_ttl": SECOND}, "key_ttl needs .*hold='active'"),
        ({**KEYED, "key_ttl": SECOND, "hold": "queued"}, "key_ttl needs .*hold='queued'"),
        (
            {**KEYED, "key_ttl": -SECOND, "hold": "forever"},
            r"key_ttl=.*seconds=-?\d+.* must not be negative or zero",
        ),
        ({**KEYED, "key_ttl": timedelta(0), "hold": "forever"}, "key_ttl=.* must not be negative or zero"),
        ({**KEYED, "key_ttl": 3600, "hold": "forever"}, "key_ttl=3600 must be a timedelta"),
        ({"delay": SECOND, "run_at": NOON}, "delay and run_at exclude each other"),
        ({"delay": -SECOND}, "delay=.* must not be negative$"),
        ({"delay": 30}, "delay=30 must be a timedelta"),
        ({"delay": timedelta.max}, "delay=.*999999999"),  # PostgreSQL would say so, and abort the transaction
        ({**KEYED, "key_ttl": timedelta.max, "hold": "forever"}, "key_ttl=.*999999999"),
        ({"run_at": datetime(2026, 1, 1)}, r"run_at=datetime.*2026.* has no time zone"),  # noqa: DTZ001 - the point
        ({"run_at": "2026-01-01T00:00:00Z"}, "run_at='2026-01-01T00:00:00Z' must be"),
        ({"max_attempts": 0}, "max_attempts=0 must be an integer from 1"),
        ({"max_attempts": 2**31}, "max_attempts=2147483648"),
        ({"max_attempts": True}, "max_attempts=True"),
        ({"max_attempts": 1.5}, r"max_attempts=1\.5"),
        ({"max_attempts": "3"}, "max_attempts='3'"),
        ({"priority": 2**15}, "priority=32768 must be an integer from -32768 to 32767"),
        ({"priority": -(2**15) - 1}, "priority=-32769"),
        ({"priority": 0.5}, r"priority=0\.5"),
        ({"priority": None}, "priority=None"),
        ({**KEYED, "strict": True, "on_duplicate": "update"}, "strict .* on_duplicate=.update"),
        ({"on_duplicate": "raise"}, "on_duplicate='raise' needs a key"),
        ({"on_duplicate": "replace", "only_once": False}, "on_duplicate='replace' needs a key"),
        ({"retry": None}, "retry=None must be NoRetry"),
        ({"retry": 3}, "retry=3 must be"),
        ({"retry": Fixed}, "retry=<class .*Fixed'> must be"),
        ({"retry": Fixed(-SECOND)}, "retry.delay=.* must not be negative"),
        ({"retry": Fixed(30)}, "retry.delay=30 must be a timedelta"),
        ({"retry": Fixed(SECOND, jitter=1.1)}, r"retry.jitter=1\.1 must be from 0 to 1"),
        ({"retry": Fixed(SECOND, jitter=-0.1)}, r"retry.jitter=-0\.1"),
        ({"retry": Fixed(SECOND, jitter=float("nan"))}, "retry.jitter=nan"),
        ({"retry": Exponential(base=-SECOND)}, "retry.base=.* must not be negative"),
        ({"retry": Exponential(cap=-SECOND)}, "retry.cap=.* must not be negative"),
        ({"retry": Exponential(factor=0.5)}, r"retry.factor=0\.5 must be from 1 to 1000"),
        ({"retry": Exponential(factor=1001)}, "retry.factor=1001"),
        ({"retry": Exponential(factor=float("nan"))}, "retry.factor=nan"),
        ({"retry": Exponential(factor=float("inf"))}, "retry.factor=inf"),
        ({"retry": Exponential(jitter=2)}, "retry.jitter=2"),
        ({"headers": {"durable:parent": "x"}}, "header 'durable:parent'.*reserved"),
        ({"headers": {1: "x"}}, "header 1: names are strings"),
    ],
)
def test_option_that_can_not_work_is_refused_by_its_name_and_value(keywords, complaint):
    with pytest.raises(InvalidOptions, match=complaint):
        resolve(keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {**KEYED, "key_ttl": SECOND, "hold": "forever"},
        {**KEYED, "key_ttl": SECOND, "hold": Hold.SUCCEEDED},
        {"only_once": True, "on_duplicate": "replace"},
        {**KEYED, "strict": True, "on_duplicate": "raise"},
        {"max_attempts": 2**31 - 1, "priority": -(2**15)},
        {"retry": Exponential(factor=1, jitter=1)},
        {"headers": {"trace": {"id": 1}}, "columns": {"order_id": 7}},
    ],
)
def test_options_that_can_work_are_kept(keywords):
    options = asdict(resolve(keywords))
    kept = {name: asdict(value) if name == "retry" else value for name, value in keywords.items()}
    assert {name: options[name] for name in keywords} == kept


# Keys


@pytest.mark.parametrize("key", ["k", "x" * 255, "😀" * 255, " ", "a~b", "\n", "é", "%(x)s:1"])
def test_key_is_taken_as_it_is(key):
    assert check_key(key) is key
    assert resolve({"idempotency_key": key}).idempotency_key is key


@pytest.mark.parametrize(
    "key, complaint",
    [
        ("", "idempotency_key of 0 characters: 1 to 255"),
        ("x" * 256, "idempotency_key of 256 characters: 1 to 255 are allowed. Hash a longer one"),
        ("a\0b", r"idempotency_key='a\\x00b' contains a NUL"),
        ("a\ud800", r"idempotency_key='a\\ud800' contains a NUL or a lone surrogate"),
        ("~mine", "idempotency_key='~mine': the prefix '~' is reserved"),
        (7, "idempotency_key=7 must be a string"),
        (b"k", "idempotency_key=b'k' must be a string"),
    ],
)
def test_key_that_can_not_be_one_is_refused(key, complaint):
    with pytest.raises(InvalidKey, match=complaint):
        resolve({"idempotency_key": key, "only_once": True})


# Retries


def _course(retry: Any, max_attempts: int | None, runs: int) -> list[float | str]:
    """The seconds after each failure, until the task has failed."""
    course: list[float | str] = []
    for attempt in range(1, runs + 1):
        verdict = after_failure(retry, attempt=attempt, max_attempts=max_attempts)
        if isinstance(verdict, GiveUp):
            return [*course, "failed"]
        course.append(verdict.delay.total_seconds())
    return course


@pytest.mark.parametrize(
    "retry, max_attempts, course",
    [
        (Exponential(_seconds(40), 3, cap=_seconds(90), jitter=0), 3, [40, 90, "failed"]),
        (Exponential(SECOND, 2, cap=_seconds(10), jitter=0), None, [1, 2, 4, 8, 10, 10]),
        (Exponential(_seconds(100), 2, cap=_seconds(90), jitter=0), 2, [90, "failed"]),
        (Exponential(_seconds(5), 1, cap=_seconds(90), jitter=0), 4, [5, 5, 5, "failed"]),
        (Exponential(timedelta(0), 1000, jitter=0), None, [0, 0, 0, 0, 0, 0]),
        (Fixed(_seconds(30), jitter=0), 3, [30, 30, "failed"]),
        (Fixed(timedelta(0), jitter=1), 2, [0, "failed"]),
        (NoRetry(), None, ["failed"]),
        (NoRetry(), 10, ["failed"]),
        (Fixed(_seconds(30), jitter=0), 1, ["failed"]),
    ],
)
def test_course_of_a_task_that_keeps_failing(retry, max_attempts, course):
    assert _course(retry, max_attempts, 6) == course


@pytest.mark.parametrize("attempt", [1, 2, 200, 2**31 - 1])
def test_a_base_of_zero_never_waits(attempt):
    assert retry_delay(Exponential(base=timedelta(0), factor=1000), attempt) == timedelta(0)


@pytest.mark.parametrize("attempt", [1, 1000, 10**6, 2**31 - 1])
@pytest.mark.parametrize("factor", [1, 1.0, 2, 1000, 999.9])
def test_delay_of_any_attempt_stays_under_the_cap(attempt, factor):
    retry = Exponential(_seconds(5), factor, cap=timedelta(days=365), jitter=0)
    check_retry(retry)
    assert timedelta(0) <= retry_delay(retry, attempt) <= timedelta(days=365)


@pytest.mark.parametrize(
    "retry",
    [
        Fixed(timedelta.max, jitter=0),
        Exponential(timedelta.max, 1000, cap=timedelta.max, jitter=0),
        Exponential(SECOND, cap=timedelta.max, jitter=0),
    ],
)
def test_policy_that_was_taken_has_a_delay_for_every_attempt(retry):
    with suppress(InvalidOptions):
        check_retry(retry)
        assert retry_delay(retry, 10**6) > timedelta(0)


durations = st.timedeltas(timedelta(0), timedelta(days=3650))
fractions = st.floats(0, 1)
policies = (
    st.just(NoRetry())
    | st.builds(Fixed, durations, fractions)
    | st.builds(Exponential, durations, st.floats(1, 1000), durations, fractions)
)
retrying = policies.filter(lambda retry: not isinstance(retry, NoRetry))
attempts = st.integers(1, 2**31 - 1)


@few
@given(retry=retrying, attempt=attempts)
def test_jitter_takes_away_at_most_its_part(retry, attempt):
    full, least, drawn = (retry_delay(retry, attempt, chance=chance) for chance in (0.0, 1.0, None))
    assert least <= drawn <= full
    rounding = timedelta(microseconds=1)
    assert abs(least - full * (1 - retry.jitter)) <= rounding + full * 1e-9


@few
@given(retry=st.builds(Exponential, durations, st.floats(1, 1000), durations, st.just(0.0)), attempt=attempts)
def test_exponential_delays_never_shrink(retry, attempt):
    assert retry_delay(retry, attempt) <= retry_delay(retry, attempt + 1) <= retry.cap


def test_jitter_spreads_what_failed_together():
    assert len({retry_delay(Fixed(_seconds(30), jitter=0.5), 1) for _ in range(50)}) > 40


@few
@given(retry=policies, attempt=attempts, most=st.none() | attempts)
def test_error_that_is_not_retryable_ends_the_task(retry, attempt, most):
    assert after_failure(retry, attempt=attempt, max_attempts=most, retryable=False) == GiveUp()


@few
@given(retry=retrying, attempt=attempts, most=attempts)
def test_attempts_never_exceed_their_number(retry, attempt, most):
    verdict = after_failure(retry, attempt=attempt, max_attempts=most)
    assert isinstance(verdict, GiveUp) == (attempt >= most)
    assert isinstance(after_failure(retry, attempt=attempt, max_attempts=None), RetryAfter)


@few
@given(retry=retrying, attempt=attempts, most=st.none() | attempts)
def test_lost_worker_counts_as_an_attempt_and_costs_no_further_delay(retry, attempt, most):
    verdict = after_lease_expired(retry, attempt=attempt, max_attempts=most)
    assert verdict == (GiveUp() if most is not None and attempt >= most else RetryAfter(timedelta(0)))


def test_lost_worker_ends_a_task_that_is_not_to_be_retried():
    assert after_lease_expired(NoRetry(), attempt=1, max_attempts=5) == GiveUp()


@few
@given(retry=policies)
def test_stored_policy_comes_back(retry):
    assert retry_from_json(json.loads(json.dumps(retry_to_json(retry)))) == retry


def test_row_without_a_policy_has_the_default_one():
    assert retry_from_json(None) == Exponential() == SpawnOptions().retry


def test_policy_that_was_stored_without_jitter_has_none():
    assert retry_from_json({"kind": "fixed", "delay_seconds": 3}) == Fixed(_seconds(3), jitter=0)


@pytest.mark.parametrize("stored", [{}, {"kind": "fibonacci"}, {"kind": "fixed"}, {"delay_seconds": 1}])
def test_stored_policy_of_an_unknown_kind_is_refused(stored):
    with pytest.raises(InvalidOptions, match="of a kind that this version doesn't know"):
        retry_from_json(stored)
