"""Statements are built once per queue: SQLAlchemy then finds the compiled form at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def cached_statement(build: Callable[P, T]) -> Callable[P, T]:
    """`build`, remembering its values for the last 512 arguments (queues, mostly); typed as it was."""
    return cast("Callable[P, T]", lru_cache(512)(build))
