"""How a queue's tables, indexes and checks are called, and how they are recognised."""

from __future__ import annotations

import re
from enum import StrEnum

from sqlalchemy.sql.elements import conv

from ..errors import DeclarationError

# PostgreSQL cuts identifiers at 63 bytes; our longest name takes 27 beside the queue's.
MAX_QUEUE_LENGTH = 32
_QUEUE = re.compile(r"[a-z][a-z0-9_]*")


class Role(StrEnum):
    """What one of a queue's tables is for."""

    TASKS = "tasks"
    RUNS = "runs"
    CHECKPOINTS = "checkpoints"
    EVENTS = "events"
    WAITS = "waits"


QUEUES_TABLE = "durable_queues"
QUEUES_COMMENT = "sa_durable::queues"
COMMENT_PATTERN = "sa_durable:%:tasks"  # LIKE: the comment of every queue's task table


def check_queue(queue: object, declared_by: str) -> str:
    """`queue` itself, if a queue can be called so. Raises DeclarationError."""
    if not isinstance(queue, str) or not _QUEUE.fullmatch(queue) or len(queue) > MAX_QUEUE_LENGTH:
        raise DeclarationError(
            f"{declared_by}.__queue__ = {queue!r}: a queue's name is made of a-z, 0-9 and _, starts with a letter "
            f"and has at most {MAX_QUEUE_LENGTH} characters, so that its tables' names fit PostgreSQL's 63 bytes"
        )
    return queue


def table_name(queue: str, role: Role) -> str:
    return f"durable_{queue}_{role.value}"


def comment(queue: str, role: Role) -> str:
    """The table's comment in the database, by which migrations find every queue (also one without a model)."""
    return f"sa_durable:{queue}:{role.value}"


def named(kind: str, table: str, suffix: str) -> str:
    """The name of an index ("ix", "uq") or check ("ck"), the same under every naming convention of the host."""
    return conv(f"{kind}_{table}_{suffix}")
