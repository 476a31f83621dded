"""The key of only_once is one for equal calls, everywhere and for ever, and another for any other call.

The canonical texts in once_vectors.json were written by hand from RFC 8785; their keys were made with hashlib alone.
A vector never changes: that would give calls which are stored already another key. New ones are added.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, bindparam, cast, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Text

from sa_durable import once_key
from sa_durable.codec import dumps
from tests.apps import application

PATH = Path(__file__).with_name("once_vectors.json")
VECTORS = json.loads(PATH.read_text())
by_name = pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])

EXACT = 2**53
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
# The ends of the Basic Multilingual Plane and what lies beyond: where UTF-8 and UTF-16 sort differently.
texts = st.text(characters, max_size=6) | st.text("~ab\ud7ff\ue000\uffff\U00010000\U0010ffff", max_size=3)
whole = (
    st.integers()
    | st.integers(EXACT - 3, EXACT + 3)
    | st.integers(-EXACT - 3, 3 - EXACT)
    | st.integers(10**30)
)
numbers = (
    whole | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-400, 300).map(lambda e: 10.0**e)
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.just("~int"), inner, max_size=4),
    max_leaves=12,
)


Base, VectorTask = application(VectorTask="vectors")


class Colour(Enum):
    RED = "red"


@dataclass
class Person:
    name: str
    tags: tuple[str, ...]


@VectorTask.handler()
def settle(
    ctx: object,
    at: datetime,
    account: UUID,
    amount: Decimal,
    colour: Colour,
    every: timedelta,
    day: date,
    raw: bytes,
    who: Person,
) -> None: ...


@by_name
def test_vector_has_its_key(vector):
    assert once_key(vector["task"], json.loads(vector["params"])) == vector["key"]


@by_name
def test_key_of_a_vector_is_the_hash_of_its_canonical_text(vector):
    assert vector["key"] == "~once1:" + sha256(vector["canonical"].encode()).hexdigest()
    assert json.loads(vector["canonical"])[:2] == ["sa_durable/1", vector["task"]]


def test_vectors_that_mean_the_same_call_share_a_key_and_no_others_do():
    names: dict[str, set[str]] = {}
    for vector in VECTORS:
        names.setdefault(vector["key"], set()).add(vector["name"])
    assert [group for group in names.values() if len(group) > 1] == [
        {"negative zero is zero", "zero"},
        {"1e16 is an integer", "10000000000000000 is the same one"},
        {"2**53 keeps its digits", "2**53 as a float"},
    ]
    assert len(VECTORS) >= 60


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_keys_are_the_same_in_a_process_with_another_hash_seed(seed):
    program = (
        "import json, sys; from sa_durable import once_key\n"
        "for v in json.load(open(sys.argv[1])): print(once_key(v['task'], json.loads(v['params'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(PATH)],
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [vector["key"] for vector in VECTORS]


def test_call_is_hashed_as_it_is_stored():
    call = settle.call(
        who=Person("Ada", ("x", "y")),
        raw=b"hi",
        day=date(2026, 1, 2),
        every=timedelta(minutes=90),
        colour=Colour.RED,
        amount=Decimal("10.50"),
        account=UUID("12345678-1234-5678-1234-567812345678"),
        at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    )
    vector = next(vector for vector in VECTORS if vector["name"] == "a typed call")
    assert call.params == json.loads(vector["params"])
    assert once_key(call.name, call.params) == vector["key"]


def test_derived_key_fits_the_column_and_cannot_be_given():
    assert len(once_key("x" * 255, {"y": "z" * 10_000})) == 71
    assert once_key("charge", {}).startswith("~")


def _from_postgres(engine: Engine, value: Any) -> Any:
    with engine.connect() as connection:
        return connection.scalar(select(cast(bindparam("x", dumps(value), type_=Text()), JSONB)))


@settings(max_examples=60, deadline=None)
@given(params=st.lists(values, min_size=1, max_size=20))
def test_key_is_the_same_when_it_is_computed_from_the_row(shared_engine, params):
    stored = _from_postgres(shared_engine, params)
    assert [once_key("charge", value) for value in stored] == [once_key("charge", value) for value in params]


def _reversed(value: Any) -> Any:
    match value:
        case dict():
            return {key: _reversed(inner) for key, inner in reversed(value.items())}
        case list():
            return tuple(map(_reversed, value))
        case _:
            return value


@settings(max_examples=150, deadline=None)
@given(params=values)
def test_key_does_not_depend_on_the_order_of_keys_or_the_kind_of_sequence(params):
    assert once_key("charge", _reversed(params)) == once_key("charge", params)


@settings(max_examples=150, deadline=None)
@given(a=whole, b=whole)
def test_every_id_has_a_key_of_its_own(a, b):
    assert (once_key("charge", {"id": a}) == once_key("charge", {"id": b})) == (a == b)


@settings(max_examples=150, deadline=None)
@given(base=st.integers(EXACT, 10**40), step=st.integers(1, 1000), sign=st.sampled_from([1, -1]))
def test_neighbouring_ids_that_a_double_merges_stay_apart(base, step, sign):
    assert once_key("charge", {"id": sign * base}) != once_key("charge", {"id": sign * (base + step)})


def _plain(value: Any) -> Any:
    """What makes two JSON values equal to PostgreSQL: types by name, since True == 1 and 1 == 1.0 in Python."""
    match value:
        case bool() | None | str():
            return type(value).__name__, value
        case int() | float():
            return "number", Decimal(repr(value)) if value else Decimal(0)
        case list():
            return tuple(map(_plain, value))
        case dict():
            return frozenset((key, _plain(inner)) for key, inner in value.items())


@settings(max_examples=150, deadline=None)
@given(a=values, b=values)
def test_two_values_share_a_key_only_if_they_are_equal(a, b):
    assert (once_key("charge", a) == once_key("charge", b)) == (_plain(a) == _plain(b))


def test_integers_of_any_length_have_keys():
    assert once_key("charge", {"id": 10**5000}) != once_key("charge", {"id": 10**5000 + 1})
