"""What was notified: everything, in the order of commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import psycopg
from sqlalchemy import Engine, make_url

CHANNEL = "sa_durable"
_fences = count(1)


def connect(url: str) -> psycopg.Connection[Any]:
    """A psycopg connection of its own, in autocommit."""
    return psycopg.connect(
        make_url(url).set(drivername="postgresql").render_as_string(False), autocommit=True
    )


class Ear:
    """A connection that listens, and one that says when it has heard enough."""

    def __init__(self, url: str) -> None:
        self.connection, self._other = connect(url), connect(url)
        self.connection.execute(f"LISTEN {CHANNEL}")

    def payloads(self) -> list[str]:
        """What was notified since the last call: notifications arrive in the order of commits, and ours is the last."""
        fence, got = f"fence {next(_fences)}", []
        self._other.execute("SELECT pg_notify(%s, %s)", (CHANNEL, fence))
        for heard in self.connection.notifies(timeout=20):
            if heard.payload == fence:
                return got
            got.append(heard.payload)
        raise AssertionError("our own notification did not come")

    def hints(self) -> list[tuple[str, str]]:
        """Those about queues: kind and queue."""
        parts = [payload.split(" ") for payload in self.payloads()]
        return [(part[0], part[2]) for part in parts if len(part) == 3]

    def close(self) -> None:
        self.connection.close()
        self._other.close()


@contextmanager
def listening(engine: Engine) -> Iterator[Ear]:
    ear = Ear(engine.url.render_as_string(hide_password=False))
    try:
        yield ear
    finally:
        ear.close()
