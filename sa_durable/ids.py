"""UUIDs made by the client, so that a spawn needs no round trip and ids sort by time."""

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
        """Return `number` new UUIDs, in order, 16 bytes each, for batches."""
        return b"".join([uuid7().bytes for _ in range(number)])
else:
    _RANDOM = 74  # bits, beside 48 bits of time
    _last = 0
    _lock = Lock()

    def uuid7() -> UUID:
        """Return a UUIDv7: 48 bits of Unix milliseconds, then 74 random bits.

        Each UUID is greater than the one before it in this process, also within a millisecond (RFC 9562,
        sections 5.7 and 6.2, method 2).
        """
        return UUID(int=_layout(_next(0)))

    def uuid7_bytes(number: int) -> bytes:
        """Return `number` new UUIDs, in order, 16 bytes each, in a tenth of the time of `uuid7` calls."""
        steps = [step + 1 for step in array("I", os.urandom(array("I").itemsize * number))]
        room = sum(steps)
        high, low = divmod(_layout(_next(room)), 2**64)
        # The last values would overflow into the upper half, once in 100,000 batches: take other ones.
        if (low + room) >> 62 != low >> 62:
            return uuid7_bytes(number)
        halves = array("Q", [high]) * (2 * number)
        halves[1::2] = array("Q", accumulate(steps, initial=low))[1:]
        if sys.byteorder == "little":
            halves.byteswap()
        return halves.tobytes()

    def _next(room: int) -> int:
        """Return a new value of time and random bits.

        No other call in this process gets this value, nor any of the `room` values after it.
        """
        global _last  # noqa: PLW0603 - the last value of this process
        draw = int.from_bytes(os.urandom(10), "big") >> 6
        value = time.time_ns() // 1_000_000 << _RANDOM | draw
        with _lock:
            if value >> _RANDOM <= _last >> _RANDOM:
                value = _last + 1 + (draw & 0xFFFFFFFF)
            _last = value + room
        return value

    def _layout(value: int) -> int:
        random_a, random_b = value >> 62 & 0xFFF, value & (1 << 62) - 1
        return value >> _RANDOM << 80 | 0x7 << 76 | random_a << 64 | 0x2 << 62 | random_b


__all__ = ["uuid7", "uuid7_bytes"]
