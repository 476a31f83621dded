"""C10: a transaction that nobody ends keeps VACUUM from what the queue leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import quantiles

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import leases, runs
from sa_durable.services.front import Front
from sa_durable.services.runs import Completed
from tests.databases import throwaway
from tests.faults.app import Base, FaultTask, whole
from tests.faults.conftest import seconds

BATCH, RATE = 25, 500
LEASE = timedelta(seconds=60)


@dataclass
class Queue:
    """500 tasks a second come, are claimed and completed."""

    engine: Engine
    claims: list[float] = field(default_factory=list)
    front: Front = field(default_factory=Front)

    def turn(self) -> None:
        with Session(self.engine) as session, session.begin():
            Durable(session).spawn_many([whole.call(pause=0.0) for _ in range(BATCH)])
        with Session(self.engine) as session, session.begin():
            began = time.perf_counter()
            claimed = leases.claim(
                session, FaultTask, names=["whole"], worker="w", lease=LEASE, limit=BATCH, front=self.front
            )
            self.claims.append(time.perf_counter() - began)
        with Session(self.engine) as session, session.begin():
            ended = [Completed(claim.task_id, claim.token, "null") for claim in claimed]
            runs.complete_many(session, FaultTask, ended)

    def p95(self) -> float:
        return quantiles(self.claims, n=20)[-1]


def test_claims_stay_quick_while_a_transaction_holds_the_horizon(steady, figures):
    """Beside a queue in another database, which nobody holds, in turn: what slows the machine slows both."""
    counted, turns = figures("C10 old snapshot"), int(seconds(20) * RATE / BATCH)
    with throwaway(steady.url, Base.metadata) as free, throwaway(steady.url, Base.metadata) as held:
        queues = [Queue(free), Queue(held)]
        holder = held.connect().execution_options(isolation_level="REPEATABLE READ")
        holder.execute(text("SELECT count(*) FROM moves"))
        began = time.monotonic()
        for _ in range(turns):
            for queue in queues:
                queue.turn()
        counted.seconds = round(time.monotonic() - began, 1)
        holder.close()
    counted.faults, counted.tasks = 1, 2 * turns * BATCH
    p95 = [queue.p95() for queue in queues]
    counted.notes["tasks while it was held"] = turns * BATCH
    counted.notes["p95 of a claim, free and held (ms)"] = [round(1000 * value, 2) for value in p95]
    counted.notes["ratio (under 3)"] = ratio = round(p95[1] / p95[0], 2)
    assert ratio < 3
