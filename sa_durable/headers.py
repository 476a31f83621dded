"""The headers that tasks are spawned with."""

from __future__ import annotations

from collections.abc import Mapping

from . import policy, telemetry
from .codec import NotJson, dumps, require_json
from .errors import InvalidOptions
from .values import Json

MAX_BYTES = 64 * 1024
"""Largest size of a task's headers as JSON, in bytes."""


def spawn_headers(queue: str, name: str, headers: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
    """Return the headers of a new task: those of its options, as `telemetry.before_spawn` hooks changed them.

    Args:
        queue: The name of the queue.
        name: The name of the task.
        headers: The headers of the spawn's options.

    Raises:
        InvalidOptions: A hook set a header that can't be stored.
    """
    if not telemetry.spawn_hooks:
        return headers
    return telemetry.changed_headers(queue, name, headers, check=_check_headers)


def encode_headers(headers: Mapping[str, Json] | None) -> str | None:
    """Return headers as JSON text; None if there are none.

    Raises:
        InvalidOptions: They can't be stored as JSON, or are larger than 64 KiB.
    """
    if not headers:
        return None
    try:
        stored = dict(headers)
        require_json(stored, "headers")
        return dumps(stored, place="headers", limit=MAX_BYTES)
    except NotJson as error:
        raise InvalidOptions(str(error)) from error


def _check_headers(headers: Mapping[str, Json]) -> None:
    policy.check_header_names(headers)
    encode_headers(headers)
