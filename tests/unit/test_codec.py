"""What is JSON that PostgreSQL can store is stored as it is; everything else is refused, with the place named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy import bindparam, cast, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import Text

from sa_durable.codec import MAX_BYTES, Coder, NotJson, dumps, require_json


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


@dataclass
class Point:
    x: int
    y: Decimal


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _looped() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


UNSTORABLE = [
    ({"a": float("nan")}, "params.a is nan: JSON has no such number"),
    ({"a": [1, float("inf")]}, r"params.a\[1\] is inf"),
    ({"a": (float("-inf"),)}, r"params.a\[0\] is -inf"),
    ({"a": "x\0y"}, "params.a has a NUL character"),
    ({"a\0": 1}, "params key .* has a NUL character"),
    ({"a": "\ud800"}, "params.a has a lone surrogate"),
    ({"a": [{"b": "x\udfffy"}]}, r"params.a\[0\].b has a lone surrogate"),
    ({"\udc00": 1}, "params key .* has a lone surrogate"),
    ({"a": {1, 2}}, "params.a is of type set, which has no JSON form"),
    ({"a": Decimal(1)}, "params.a is of type Decimal"),
    ({"a": b"x"}, "params.a is of type bytes"),
    ({"a": UUID(int=1)}, "params.a is of type UUID"),
    ({"a": datetime(2026, 1, 1, tzinfo=UTC)}, "params.a is of type datetime"),
    ({"a": object()}, "params.a is of type object"),
    ({"a": {(1, 2): 3}}, r"params.a has the key \(1, 2\): JSON keys are strings"),
    ({"a": {1: 2}}, "params.a has the key 1: JSON keys are strings"),
    ({"a": {None: 2}}, "params.a has the key None: JSON keys are strings"),
    ({"a": {True: 2}}, "params.a has the key True: JSON keys are strings"),
    (_nested(100_000), "params is nested too deeply or contains itself"),
    (_looped(), "params (is nested too deeply or contains itself|: Circular reference detected)"),
]
unstorable = pytest.mark.parametrize(
    "value, complaint", UNSTORABLE, ids=[str(i) for i in range(len(UNSTORABLE))]
)


@unstorable
def test_unstorable_value_is_refused_by_the_check_with_its_place(value, complaint):
    with pytest.raises(NotJson, match=complaint):
        require_json(value, "params")


@unstorable
def test_unstorable_value_is_refused_when_it_is_dumped_with_its_place(value, complaint):
    if "keys are strings" in complaint and r"\(1, 2\)" not in complaint:
        value = {**value, "b": float("nan")}  # json writes such keys as strings: who dumps has checked them
    with pytest.raises(NotJson, match=complaint):
        dumps(value, place="params")


@unstorable
def test_unstorable_value_of_an_untyped_parameter_is_refused(value, complaint):
    with pytest.raises(NotJson, match=complaint):
        Coder(Any).encode(value, "params")


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "null"),
        ({"b": 1, "a": [True, None, 1.5]}, '{"b":1,"a":[true,null,1.5]}'),
        ((1, 2), "[1,2]"),
        ("é😀\u2028", '"é😀\u2028"'),
        ("\\u0000", '"\\\\u0000"'),  # six characters, none of them NUL
        ({"\\u0000": "\\\\u0000"}, '{"\\\\u0000":"\\\\\\\\u0000"}'),
        (Level.HIGH, "3"),
        (Word.YES, '"yes"'),
        (10**4000, "1" + "0" * 4000),
    ],
)
def test_storable_value_is_compact_text(value, text):
    require_json(value, "value")
    assert dumps(value) == text


@pytest.mark.parametrize(
    "value", [{"x" * 2**20: object()}, {"x" * 2**20: {"\0": 1}}, {"a": {"\0" * 2**20: 1}}]
)
def test_a_place_with_long_keys_is_named_by_its_ends(value):
    with pytest.raises(NotJson, match=r"^params.* \.\.\. .*(no JSON form here|NUL character)") as refused:
        require_json(value, "params")
    assert len(str(refused.value)) < 1100


def test_size_is_counted_in_bytes():
    assert dumps("é" * 4, limit=10)
    with pytest.raises(NotJson, match="note takes 12 bytes as JSON; 10 are allowed"):
        dumps("é" * 5, place="note", limit=10)


def test_one_mebibyte_is_the_limit():
    assert len(dumps("x" * (MAX_BYTES - 2))) == MAX_BYTES == 1024**2
    with pytest.raises(NotJson, match="takes 1048577 bytes"):
        dumps("x" * (MAX_BYTES - 1))


def test_integer_that_python_refuses_to_print_is_refused():
    with pytest.raises(NotJson, match="limit"):
        dumps(10**5000)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["\0", "\ud800", b"", {1}]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(texts, inner, max_size=3)
        | st.dictionaries(st.integers() | st.none(), inner, max_size=1)
    ),
    max_leaves=6,
)


def _same(value: Any) -> Any:
    """What jsonb keeps of a value: a number's decimal value, not whether it was a float."""
    match value:
        case float():
            return Decimal(repr(value))
        case list() | tuple():
            return [_same(inner) for inner in value]
        case dict():
            return {key: _same(inner) for key, inner in value.items()}
        case _:
            return value


@settings(max_examples=40, deadline=None)
@given(candidates=st.lists(anything, max_size=20))
def test_what_passes_the_check_comes_back_equal_from_postgresql(shared_engine, candidates):
    storable = []
    for value in candidates:
        try:
            require_json(value, "value")
        except NotJson as error:
            assert str(error).startswith("value")
        else:
            storable.append(value)
    text = dumps(storable)
    with shared_engine.connect() as connection:
        stored = connection.scalar(select(cast(bindparam("x", text, type_=Text()), JSONB)))
    assert _same(stored) == _same(storable)


@pytest.mark.parametrize(
    "annotation, value, encoded",
    [
        (Any, {"a": [1]}, {"a": [1]}),
        (Point, Point(1, Decimal("1.10")), {"x": 1, "y": "1.10"}),
        (dict[int, UUID], {1: UUID(int=1)}, {"1": "00000000-0000-0000-0000-000000000001"}),
        (tuple[int, ...], (1, 2), [1, 2]),
        (None, None, None),
        (list[Point] | None, None, None),
    ],
)
def test_coder_encodes_by_its_annotation_and_decodes_to_an_equal_value(annotation, value, encoded):
    coder = Coder(annotation)
    assert coder.encode(value, "result") == encoded
    assert coder.decode(json.loads(dumps(encoded)), "result") == value


def test_coder_refuses_a_value_of_another_type():
    with pytest.raises(NotJson, match=r"result: (?s:.*)Expected `int`"):
        Coder(int).encode("seven", "result")


def test_coder_refuses_json_that_does_not_fit():
    with pytest.raises(NotJson, match=r"(?s)result: .*y: Field required"):
        Coder(Point).decode({"x": 1}, "result")


def test_annotation_without_a_json_form_is_refused_when_it_is_needed():
    coder = Coder(object())
    with pytest.raises(NotJson, match="can't be stored as JSON"):
        coder.encode(1, "result")


def test_type_that_can_not_be_dumped_names_the_place():
    with pytest.raises(NotJson, match=r"result: .*Unable to serialize unknown type"):
        Coder(object).encode(object(), "result")


class Strict(BaseModel, strict=True):
    """Has no Python forms of JSON's strings: pydantic tells the two apart."""

    at: datetime


def test_strict_model_is_decoded_from_its_own_json():
    coder = Coder(Strict)
    value = Strict(at=datetime(2026, 1, 1, tzinfo=UTC))
    assert coder.decode(coder.encode(value, "result"), "result") == value
