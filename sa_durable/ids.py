"""Ids made by the client, so that a spawn needs no round trip and ids sort by time."""

import os
import sys
import time
from array import array
from itertools import accumulate
from threading import Lock
from uuid import UUID

if sys.version_info >= (3, 14):
    from uuid import uuid7

    def uuid7_bytes(number: int) -> bytes:
        """So many new UUIDs, in order, 16 bytes each, for batches."""
        return b"".join([uuid7().bytes for _ in range(number)])
else:
    _RANDOM = 74  # bits beside the 48 of the time
    _last = 0
    _lock = Lock()

    def uuid7() -> UUID:
        """A UUIDv7 (RFC 9562, sections 5.7 and 6.2, method 2): 48 bits of Unix milliseconds, then 74 random ones. Each
        is greater than the one before it in this process, within a millisecond too."""
        return UUID(int=_laid_out(_next(0)))

    def uuid7_bytes(number: int) -> bytes:
        """So many new UUIDs, in order, 16 bytes each, for batches: a tenth of the time of as many `uuid7`."""
        steps = [step + 1 for step in array("I", os.urandom(array("I").itemsize * number))]
        room = sum(steps)
        high, low = divmod(_laid_out(_next(room)), 2**64)
        if (
            low + room
        ) >> 62 != low >> 62:  # the last ones would reach into the upper half: once in 100,000 batches
            return uuid7_bytes(number)
        halves = array("Q", [high]) * (2 * number)
        halves[1::2] = array("Q", accumulate(steps, initial=low))[1:]
        if sys.byteorder == "little":
            halves.byteswap()
        return halves.tobytes()

    def _next(room: int) -> int:
        """A new value, time and random bits, that nobody else gets in this process, nor any of the `room` after it."""
        global _last  # noqa: PLW0603 - what monotonic means
        draw = int.from_bytes(os.urandom(10), "big") >> 6
        value = time.time_ns() // 1_000_000 << _RANDOM | draw
        with _lock:
            if value >> _RANDOM <= _last >> _RANDOM:
                value = _last + 1 + (draw & 0xFFFFFFFF)
            _last = value + room
        return value

    def _laid_out(value: int) -> int:
        random_a, random_b = value >> 62 & 0xFFF, value & (1 << 62) - 1
        return value >> _RANDOM << 80 | 0x7 << 76 | random_a << 64 | 0x2 << 62 | random_b


__all__ = ["uuid7", "uuid7_bytes"]
