"""The idempotency key that `only_once` derives from a task's name and params."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from hashlib import sha256

import rfc8785

from .values import Json

ONCE_PREFIX = "~once1:"
"""First characters of derived keys."""

_FORMAT = "sa_durable/1"
"""Part of what is hashed. Another format would need another prefix."""

_EXACT = 2**53
"""From this number on, neighboring integers are the same double."""


def once_key(task_name: str, params: Json) -> str:
    """Return the key of `only_once`: the same for every call of a task with the same params.

    It is `~once1:` and the SHA-256 of the canonical JSON (RFC 8785) of `["sa_durable/1", task_name, params]`.
    The order of keys doesn't matter, nor whether the params come from a call or from the stored row. The
    queue, max_attempts, headers and priority are not part of the key.

    Args:
        task_name: The name of the task.
        params: The params, as stored.
    """
    return ONCE_PREFIX + sha256(rfc8785.dumps([_FORMAT, task_name, _tag(params)])).hexdigest()


def _tag(value: Json) -> Json:
    """Return `value` with numbers from 2**53 on written as {"~int": digits}.

    RFC 8785 would round them, and so give two ids one key. A float that large is an integer too, and jsonb
    returns it as an integer (1e16 becomes 10000000000000000): its tag has its shortest decimal digits, as
    PostgreSQL reads them. The value's own keys that start with `~` get another `~`, so that nothing else is
    taken for a tag.
    """
    match value:
        case bool():
            return value
        case int() if abs(value) >= _EXACT:
            return {"~int": _digits(value)}
        case float() if abs(value) >= _EXACT:
            return {"~int": _digits(Decimal(repr(value)))}
        case list() | tuple():
            return [_tag(v) for v in value]
        case Mapping():
            return {f"~{k}" if k.startswith("~") else k: _tag(v) for k, v in value.items()}
        case _:
            return value


def _digits(value: int | Decimal) -> str:
    return format(Decimal(value), "f").removesuffix(".0")  # Decimal: str(int) refuses more than 4300 digits
