"""Build each statement once per queue, so that SQLAlchemy finds its compiled form at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def cached_statement(build: Callable[P, T]) -> Callable[P, T]:
    """Cache the statements that a builder returns, for its last 512 combinations of arguments.

    The arguments are mostly a task model and flags. An application with more than 512 queue models would
    build its statements again and again: correct, but slow.
    """
    return cast("Callable[P, T]", lru_cache(512)(build))
