"""Names of a queue's tables, indexes and checks, and the comments by which migrations find the tables."""

from __future__ import annotations

import re
from enum import StrEnum

from sqlalchemy.sql.elements import conv

from ..errors import DeclarationError

MAX_QUEUE_LENGTH = 32
"""Longest name of a queue, in characters. PostgreSQL cuts identifiers at 63 bytes; the longest one adds 27.
"""
_QUEUE = re.compile(r"[a-z][a-z0-9_]*")


class Role(StrEnum):
    """The role of one of a queue's tables."""

    TASKS = "tasks"
    RUNS = "runs"
    CHECKPOINTS = "checkpoints"
    EVENTS = "events"
    WAITS = "waits"


QUEUES_TABLE = "durable_queues"
QUEUES_COMMENT = "sa_durable::queues"
COMMENT_PATTERN = "sa_durable:%:tasks"
"""LIKE pattern of the comments of all queues' task tables."""


def check_queue(queue: object, declared_by: str) -> str:
    """Return `queue` if a queue can have this name. Raises DeclarationError."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue) or len(queue) > MAX_QUEUE_LENGTH:
        raise DeclarationError(
            f"{declared_by}.__queue__ = {queue!r}: a queue's name is made of a-z, 0-9 and _, a letter first, "
            f"at most {MAX_QUEUE_LENGTH} characters, so that its tables' names fit PostgreSQL's 63 bytes"
        )
    return queue


def table_name(queue: str, role: Role) -> str:
    """Return the name of a queue's table."""
    return f"durable_{queue}_{role.value}"


def comment(queue: str, role: Role) -> str:
    """Return the comment of a table, by which migrations find every queue, even without a model."""
    return f"sa_durable:{queue}:{role.value}"


def named(kind: str, table: str, suffix: str) -> str:
    """Return the name of an index ("ix", "uq") or check ("ck").

    It is the same under every naming convention of the application's metadata.
    """
    return conv(f"{kind}_{table}_{suffix}")
