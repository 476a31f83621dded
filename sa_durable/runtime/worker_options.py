"""Checking what a worker is made with. Each raises InvalidOptions."""

from __future__ import annotations

from datetime import timedelta

from ..errors import InvalidOptions


def check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        least = 1 if name == "concurrency" else 0
        if value is None and name == "prefetch":
            continue
        if type(value) is not int or value < least:
            raise InvalidOptions(f"{name}={value!r} must be an integer from {least}")


def check_durations(**durations: timedelta) -> None:
    for name, value in durations.items():
        if not isinstance(value, timedelta) or value <= timedelta(0):
            raise InvalidOptions(f"{name}={value!r} must be a timedelta longer than zero")


def check_worker_id(worker_id: str) -> str:
    """`worker_id` itself, if rows and logs can have it."""
    if not isinstance(worker_id, str) or not 1 <= len(worker_id) <= 255 or not worker_id.isprintable():
        raise InvalidOptions(f"worker_id={worker_id!r} must be 1 to 255 printable characters")
    return worker_id
