"""Ids made by the client, so that a spawn needs no round trip and ids sort by time."""

import os
import sys
import time
from threading import Lock
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    _RANDOM = 74  # bits beside the 48 of the time
    _last = 0
    _lock = Lock()

    def uuid7() -> UUID:
        """A UUIDv7 (RFC 9562, sections 5.7 and 6.2, method 2): 48 bits of Unix milliseconds, then 74 random ones. Each
        is greater than the one before it in this process, within a millisecond too."""
        global _last  # noqa: PLW0603 - what monotonic means
        draw = int.from_bytes(os.urandom(10), "big") >> 6
        value = time.time_ns() // 1_000_000 << _RANDOM | draw
        with _lock:
            if value >> _RANDOM <= _last >> _RANDOM:
                value = _last + 1 + (draw & 0xFFFFFFFF)
            _last = value
        random_a, random_b = value >> 62 & 0xFFF, value & (1 << 62) - 1
        return UUID(int=value >> _RANDOM << 80 | 0x7 << 76 | random_a << 64 | 0x2 << 62 | random_b)


__all__ = ["uuid7"]
