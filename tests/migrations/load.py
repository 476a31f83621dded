"""Spawners and workers that work while the schema moves: `python -m tests.migrations.load ROLE URL`, until SIGTERM.

No statement of theirs waits for a lock for longer than two seconds: PostgreSQL ends it then, and they end with that
error. At the end each prints, as JSON, how much it did and how long its longest statement took, in seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.demo.models import PaymentTask
from sa_durable.services import leases, runs
from sa_durable.services.runs import Completed
from tests.migrations import first

PATIENCE = "-c lock_timeout=2s"
HOT = 50  # keys that the new spawners come back to


class Load:
    """What a process does again and again, and its figures."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = create_engine(url, connect_args={"options": PATIENCE})
        self.done = self.duplicates = 0
        self.longest = 0.0
        self.stopped = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopped = True

    @contextmanager
    def timed(self) -> Iterator[Connection]:
        began = time.monotonic()
        with self.engine.begin() as connection:
            yield connection
        self.longest = max(self.longest, time.monotonic() - began)

    def old_spawner(self, number: int) -> None:
        with self.timed() as connection:
            first.spawn(connection, "charge", f"live-{os.getpid()}-{number}")
        self.done += 1

    def old_worker(self, number: int) -> None:
        with self.timed() as connection:
            claims = first.claim(connection, f"first-{os.getpid()}", 5)
        if claims:
            with self.timed() as connection:
                first.extend(connection, claims)
            with self.timed() as connection:
                self.done += first.complete(connection, claims)
        else:
            time.sleep(0.01)

    def new_spawner(self, number: int) -> None:
        with self.timed() as connection, Session(connection) as session:
            key = f"hot-{number % HOT}"
            spawned = Durable(session).spawn(PaymentTask, "charge", {}, idempotency_key=key, hold="forever")
        self.done += spawned.created
        self.duplicates += not spawned.created

    def new_worker(self, number: int) -> None:
        options = {"names": ["charge"], "worker": "second", "lease": timedelta(minutes=1), "limit": 5}
        with self.timed() as connection, Session(connection) as session:
            claims = leases.claim(session, PaymentTask, **options)
        with self.timed() as connection, Session(connection) as session:
            ended = [Completed(claim.task_id, claim.token, '{"by": "second"}') for claim in claims]
            self.done += len(runs.complete_many(session, PaymentTask, ended).reached) if ended else 0


def main(role: str, url: str) -> None:
    load = Load(url)
    act: Callable[[int], None] = getattr(load, role)
    print("ready", flush=True)
    for number in count():
        if load.stopped:
            break
        act(number)
    load.engine.dispose()
    print(json.dumps({"done": load.done, "duplicates": load.duplicates, "longest": load.longest}))


if __name__ == "__main__":
    main(*sys.argv[1:])
