"""Values that people pass: good JSON, and everything else."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
HOW = settings(
    max_examples=2000 if SOAK else 30,
    derandomize=not SOAK,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

STRANGE = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfffx",
    "\U0001f600",
    "\u2028\x85\x7f\x1b",
    "'; DROP TABLE durable_billing_tasks; --",
    "%s %(a)s :b {} $1 ?",
    'NULL","{}\\',
    "\\u0000",
    "~once1:x",
    "$task:00000000-0000-0000-0000-000000000000",
    "\u202eabc",
    "x" * 255,
    "x" * 256,
    "\U0001f600" * 255,
    "x" * 2**20,
]
texts = st.sampled_from(STRANGE) | st.text(st.characters(exclude_categories=[]), max_size=20)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = {"a": value} if depth % 2 else [value]
    return value


def itself() -> Any:
    value: dict[str, Any] = {}
    value["itself"] = value
    return value


NUMBERS = [10**400, -(10**400), 2**53 + 1, 2**63, 1e16, 5e-324, 1.7976931348623157e308, -0.0]
OTHERS = [
    math.nan,
    math.inf,
    -math.inf,
    b"x",
    {1, 2},
    object(),
    Decimal("1.5"),
    datetime(2026, 1, 1, tzinfo=UTC),
]
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.sampled_from(NUMBERS),
    st.sampled_from(OTHERS),
)
anything = st.one_of(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.tuples(inner, inner)
            | st.dictionaries(texts | st.integers() | st.none(), inner, max_size=4)
        ),
        max_leaves=8,
    ),
    st.builds(nested, st.sampled_from([50, 900, 5000, 100_000])),
    st.builds(itself),
    st.builds(lambda: 10**5000),  # which Python itself refuses to print
    st.just(UUID(int=1)),
)


def is_text(value: Any) -> bool:
    """Something that PostgreSQL keeps as text."""
    return isinstance(value, str) and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def is_json(value: Any, depth: int = 200) -> bool | None:
    """Whether it is JSON that can be kept. None: it may be too deep."""
    if depth == 0:
        return None
    match value:
        case None | bool():
            return True
        case int():
            return abs(value) < 10**4300
        case float():
            return math.isfinite(value)
        case str():
            return is_text(value)
        case list() | tuple():
            return _all(is_json(inner, depth - 1) for inner in value)
        case dict():
            return all(map(is_text, value)) and _all(is_json(inner, depth - 1) for inner in value.values())
    return False


def _all(parts: Any) -> bool | None:
    found = set(parts)
    return False if False in found else None if None in found else True


def size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def same(stored: Any, given: Any) -> bool:
    """As JSON: a tuple is a list, and jsonb gives 1e16 back as an integer."""
    match given:
        case float():
            return isinstance(stored, int | float) and float(stored) == given
        case list() | tuple():
            return isinstance(stored, list) and len(stored) == len(given) and all(map(same, stored, given))
        case dict():
            return (
                isinstance(stored, dict)
                and stored.keys() == given.keys()
                and all(same(stored[key], inner) for key, inner in given.items())
            )
    return type(stored) is type(given) and stored == given
