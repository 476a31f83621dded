"""Spawners and workers that run during a migration: `python -m tests.migrations.load ROLE URL`, until SIGTERM.

PostgreSQL ends a statement that waits for a lock for longer than two seconds. The process ends with this
error, unless the whole machine stalled meanwhile. A process prints a line after its first action. At its end
it prints, as JSON, how much it did and how many seconds its longest transaction took.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.demo.models import PaymentTask
from sa_durable.services import claims, runs
from sa_durable.services.runs import Completed
from tests.faults.stalls import Pulse
from tests.migrations import first_release

OPTIONS = "-c lock_timeout=2s"
LOCK_NOT_AVAILABLE = "55P03"
STALL_S = 0.5  # after a stall of this length, a lock timeout doesn't show that a lock was held too long
HOT = 50  # number of keys that the new spawners share


class Load:
    """The actions of one process, and its figures."""

    def __init__(self, role: str, url: str) -> None:
        self.role = role
        self.engine: Engine = create_engine(url, connect_args={"options": OPTIONS})
        self.done = self.duplicates = 0
        self.longest = 0.0
        self.stopped = False
        self.pulse = Pulse()
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: object) -> None:
        self.stopped = True

    def act(self, number: int) -> None:
        """Do the role's action once."""
        self.pulse.longest = 0.0
        try:
            getattr(self, self.role)(number)
        except OperationalError as error:
            time.sleep(0.1)  # lets the pulse measure the end of a stall
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE or self.pulse.longest < STALL_S:
                raise
            print(f"the machine stalled for {self.pulse.longest:.1f} s", file=sys.stderr)

    @contextmanager
    def timed(self) -> Iterator[Connection]:
        began = time.monotonic()
        with self.engine.begin() as connection:
            yield connection
        self.longest = max(self.longest, time.monotonic() - began)

    def old_spawner(self, number: int) -> None:
        with self.timed() as connection:
            first_release.spawn(connection, "charge", f"live-{os.getpid()}-{number}")
        self.done += 1

    def old_worker(self, number: int) -> None:
        with self.timed() as connection:
            claimed = first_release.claim(connection, f"first-{os.getpid()}", 5)
        if claimed:
            with self.timed() as connection:
                first_release.extend(connection, claimed)
            with self.timed() as connection:
                self.done += first_release.complete(connection, claimed)
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
            claimed = claims.claim(session, PaymentTask, **options)
        with self.timed() as connection, Session(connection) as session:
            ended = [Completed(claim.task_id, claim.token, '{"by": "second"}') for claim in claimed]
            self.done += len(runs.complete_many(session, PaymentTask, ended).reached) if ended else 0


def main(role: str, url: str) -> None:
    load = Load(role, url)
    for number in count():
        if load.stopped:
            break
        load.act(number)
        if number == 0:
            print("at work", flush=True)
    load.engine.dispose()
    print(json.dumps({"done": load.done, "duplicates": load.duplicates, "longest": load.longest}))


if __name__ == "__main__":
    main(*sys.argv[1:])
