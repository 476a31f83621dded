"""Faults that befall workers, and their database, while they are at work."""

from __future__ import annotations

import time

from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.faults.app import TASKS, blocks
from tests.faults.load import Load


def kill_workers(load: Load) -> None:
    """kill -9, at random, while spawners spawn; each is replaced."""
    while load.spawning:
        load.moment(0.7, 1.7)
        if hand := load.anyone():
            load.strike(hand)
            hand.kill()
        load.crew.fill()


LONGEST_FREEZE = 2.2  # leases


def freeze_workers(load: Load) -> None:
    """SIGSTOP one for longer than its lease, then SIGCONT: it wakes with tasks that others have by now."""
    lease = load.crew.job.lease
    while load.spawning:
        load.moment(0.1, 0.5)
        if hand := load.anyone():
            load.strike(hand)
            hand.freeze()
            load.moment(1.3 * lease, LONGEST_FREEZE * lease)
            hand.thaw()


def block_loops(load: Load) -> None:
    """Two handlers keep the event loops of their workers busy for longer than a lease. No fault at all."""
    load.undisturbed = True
    with Session(load.engine) as session, session.begin():
        for _ in range(2):
            Durable(session).spawn(blocks.call(seconds=2.3 * load.crew.job.lease))
            load.figures.faults += 1


_EXPIRE = text(f"UPDATE {TASKS} SET lease_expires_at = clock_timestamp() WHERE state = 'running'")
SLOWLY = {"tasks": 60, "pause": 0.4}
"""A load whose steps last until others have their tasks."""


def skip_time(load: Load) -> None:
    """All leases are over at once, and no worker's clock says so: as if their machines had been suspended. Only tokens
    are left to keep the old runs from writing."""
    while load.spawning:
        time.sleep(load.rng.uniform(0, 0.1))
        with load.engine.begin() as connection:
            load.figures.faults += bool(connection.execute(_EXPIRE).rowcount)


_TERMINATE = text(
    "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() ORDER BY md5(pid::text || :salt) LIMIT :some) AS them"
)


def terminate_backends(load: Load) -> None:
    """Connections are ended by the server, whatever they do."""
    load.moment(0.05, 0.3)
    with load.engine.connect() as connection:
        values = {"salt": load.rng.random(), "some": load.rng.randint(1, 4)}
        load.figures.faults += int(connection.scalar(_TERMINATE, values))
