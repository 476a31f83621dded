"""C10: a transaction that nobody ends keeps VACUUM from what the queue leaves behind."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import quantiles

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable
from sa_durable.services import claims, runs
from sa_durable.services.runs import Completed
from sa_durable.services.watermark import ClaimWatermark
from sa_durable.values import Claim
from tests.databases import throwaway
from tests.faults.app import Base, FaultTask, whole
from tests.faults.conftest import SOAK, seconds

BATCH, RATE = 20, 500
LEASE = timedelta(seconds=60)
TABLE = FaultTask.__table__.name
# By this transaction, if asked before and after.
PAGES = text(f"""
    SELECT sum(pg_stat_get_xact_blocks_fetched(relation))::bigint FROM (
        SELECT '{TABLE}'::regclass UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid = '{TABLE}'::regclass
    ) AS read(relation)
""")


@dataclass
class Queue:
    """500 tasks a second come, are claimed and completed."""

    engine: Engine
    front: ClaimWatermark
    times: list[float] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)  # that claims have looked at, each time that they did

    def turn(self, tasks: int = BATCH) -> None:
        with Session(self.engine) as session, session.begin():
            Durable(session).spawn_many([whole.call(pause=0.0) for _ in range(tasks)])
        claimed = self.claim(self.front, tasks)
        with Session(self.engine) as session, session.begin():
            ended = [Completed(claim.task_id, claim.token, "null") for claim in claimed]
            runs.complete_many(session, FaultTask, ended)

    def claim(self, front: ClaimWatermark | None, limit: int) -> list[Claim]:
        with Session(self.engine) as session, session.begin():
            pages, began = session.scalar(PAGES), time.perf_counter()
            claimed = claims.claim(
                session, FaultTask, names=["whole"], worker="w", lease=LEASE, limit=limit, watermark=front
            )
            self.times.append(time.perf_counter() - began)
            self.pages.append(session.scalar(PAGES) - pages)
        return claimed


@dataclass
class Pace:
    """Turns at their rate, or slower."""

    turns: int = 0
    began: float = field(default_factory=time.monotonic)

    def clock(self) -> float:
        """Of a machine that keeps the rate: of claims, as many look at everything as there."""
        return self.began + self.turns * BATCH / RATE

    def next(self) -> None:
        self.turns += 1
        time.sleep(max(0.0, self.clock() - time.monotonic()))


def p95(values: list[float] | list[int]) -> float:
    return quantiles(values, n=20)[-1]


def test_claims_stay_cheap_while_a_transaction_holds_the_horizon(steady, figures):
    """Beside a queue in another database, which nobody holds, in turn: what slows the machine slows both. It decides how
    many pages claims look at, of which a slow machine makes no more. For SOAK, the times are held to it, too."""
    counted, turns = figures("C10 old snapshot"), int(seconds(20) * RATE / BATCH)
    with throwaway(steady.url, Base.metadata) as free, throwaway(steady.url, Base.metadata) as held:
        pace = Pace()
        clock = time.monotonic if SOAK else pace.clock
        queues = [Queue(free, ClaimWatermark(clock)), Queue(held, ClaimWatermark(clock))]
        holder = held.connect().execution_options(isolation_level="REPEATABLE READ")
        holder.execute(text("SELECT count(*) FROM moves"))
        began = time.monotonic()
        for _ in range(turns):
            for queue in queues:
                queue.turn()
            pace.next()
        counted.seconds = round(time.monotonic() - began, 1)
        pages = [p95(queue.pages) for queue in queues]
        times = [p95(queue.times) for queue in queues]
        queues[1].claim(None, BATCH)
        holder.close()
    counted.faults, counted.tasks = 1, 2 * turns * BATCH
    counted.notes["tasks while it was held"] = turns * BATCH
    counted.notes["a second"] = round(turns * BATCH / counted.seconds)
    counted.notes["p95 of a claim, free and held (ms)"] = [round(1000 * value, 2) for value in times]
    counted.notes["ratio (under 3)"] = round(times[1] / times[0], 2)
    counted.notes["p95 of a claim, free and held (pages)"] = pages
    counted.notes["pages of a look at everything"] = everything = queues[1].pages[-1]
    assert everything > 3 * pages[0], "or else this test tests nothing"
    assert pages[1] < 3 * pages[0]
    assert not SOAK or times[1] < 3 * times[0]
