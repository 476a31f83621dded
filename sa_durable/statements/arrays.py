"""Arrays as parameters. They travel as one text, which PostgreSQL parses.

psycopg adapts a list element by element in Python: 10 us for each element, against 2 us here (measured with
ids, tokens and results of 200 tasks). That was half of what a worker's batch cost the client. And no driver
has to guess a type.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone  # noqa: F401 - the last for the example
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Text, bindparam
from sqlalchemy import cast as sql_cast


def array(name: str, type_: Any) -> ColumnElement[Any]:
    """Return parameter `name` as an array of `type_`. Its value is a text from a function below."""
    return sql_cast(bindparam(name, type_=Text()), ARRAY(type_))


def uuids(values: Iterable[UUID | None]) -> str:
    """Encode an array of UUIDs. None becomes NULL, here and below.

    >>> uuids([UUID(int=1), None])
    '{00000000000000000000000000000001,NULL}'
    """
    return "{" + ",".join(["NULL" if value is None else value.hex for value in values]) + "}"


def digits(values: Iterable[str]) -> str:
    """Encode an array of UUIDs that are given as their hexadecimal digits.

    >>> digits(["00000000000000000000000000000001"])
    '{00000000000000000000000000000001}'
    """
    return "{" + ",".join(values) + "}"


def numbers(values: Iterable[float | None]) -> str:
    """Encode an array of numbers.

    >>> numbers([1, None, 0.5])
    '{1,NULL,0.5}'
    """
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    r"""Encode an array of texts, each in quotes.

    >>> print(texts(['a"b', 'NULL', '', None]))
    {"a\"b","NULL","",NULL}
    """
    every = list(values)
    present = [value for value in every if value is not None]
    joined = "\0".join(present)
    if present and len(present) == len(every) == joined.count("\0") + 1:  # no text contains a NUL
        return '{"' + _escaped(joined).replace("\0", '","') + '"}'
    return "{" + ",".join(["NULL" if v is None else f'"{_escaped(v)}"' for v in every]) + "}"


def moments(values: Iterable[datetime | None]) -> str:
    """Encode an array of aware datetimes.

    >>> moments([datetime(2026, 1, 2, tzinfo=timezone.utc)])
    '{"2026-01-02T00:00:00+00:00"}'
    """
    return texts(None if value is None else value.isoformat() for value in values)


def durations(values: Iterable[timedelta | None]) -> str:
    """Encode an array of intervals, to the microsecond.

    >>> durations([timedelta(days=1, seconds=2, microseconds=3)])
    '{"1 days 2.000003 seconds"}'
    """
    return texts(
        None if v is None else f"{v.days} days {v.seconds}.{v.microseconds:06} seconds" for v in values
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
