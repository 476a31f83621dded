"""Ids made by the client, so that a spawn needs no round trip and ids sort by time."""

import os
import sys
import time
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:

    def uuid7() -> UUID:
        """A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
        value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return UUID(int=value)


__all__ = ["uuid7"]
