"""What a claim costs among many other tasks, and after many have passed through while nobody could vacuum."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sa_durable import Durable, DurableTask
from sa_durable.services import claims, runs
from sa_durable.services.runs import Completed
from sa_durable.services.watermark import LATE_COMMIT_S, ClaimWatermark
from sa_durable.values import Claim
from tests.apps import application
from tests.bench.figures import Figure, figure, p95, ratio_at_most
from tests.bench.workload import Bench, Workload

GOAL = 1.5  # of the time with 1,000 pending tasks and nothing else
OTHERS = 100_000
MINUTE = timedelta(minutes=1)


Base, AloneTask, PassingTask, *CROWDED = application(
    AloneTask="alone",
    PassingTask="passing",  # tasks come and go
    PendingTask="pending",
    CompletedTask="completed",
    CancelledTask="cancelled",
    SleepingTask="sleeping",
)


@PassingTask.handler()
def charge(ctx: object, order_id: int) -> None: ...


def fill(engine: Engine) -> None:
    """A thousand pending tasks in each queue, behind a hundred thousand in the state that the queue is called after."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for model in CROWDED:
            _insert(connection, model, OTHERS, model.__queue__)
        for model in (AloneTask, *CROWDED):
            _insert(connection, model, 1000, "pending")
    vacuum(engine, AloneTask, *CROWDED)


def _insert(connection, model: type[DurableTask], number: int, state: str) -> None:
    ended = state in ("completed", "cancelled")
    connection.execute(
        text(f"""
            INSERT INTO {model.__table__.name}
                (id, run_id, name, params, state, available_at, first_started_at, finished_at)
            SELECT gen_random_uuid(), gen_random_uuid(), 'charge', jsonb_build_object('order_id', n), :state,
                statement_timestamp() + n * interval '1 us' + CASE WHEN :state = 'sleeping' THEN interval '1 year'
                                                                   ELSE interval '-1 hour' END,
                CASE WHEN :ended THEN statement_timestamp() END, CASE WHEN :ended THEN statement_timestamp() END
            FROM generate_series(1, :number) AS n
        """),
        {"state": state, "number": number, "ended": ended},
    )


def vacuum(engine: Engine, *models: type[DurableTask]) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for model in models:
            connection.execute(text(f"VACUUM ANALYZE {model.__table__.name}"))


def cost(bench: Bench) -> Iterator[Figure]:
    """Milliseconds of a claim of so many tasks. Each round claims from each queue in turn, in alternating order, and
    gives all back at once."""
    engine, models = bench.engine, (AloneTask, *CROWDED)
    fill(engine)
    for limit in (1, 10, 100):
        medians: dict[type[DurableTask], list[float]] = {model: [] for model in models}
        for round_ in range(bench.rounds + 1):
            vacuum(engine, *models)
            spent: dict[type[DurableTask], list[float]] = {model: [] for model in models}
            for i in range(bench.times(20)):
                for model in models if i % 2 else models[::-1]:
                    taken = timed(lambda m=model: claim(engine, m, limit), give_back(engine, model))  # noqa: B023 - called at once
                    spent[model].append(1000 * taken)
            if round_:  # the first is to warm up
                for model in models:
                    medians[model].append(statistics.median(spent[model]))
        for model in CROWDED:
            yield figure("ms", medians[model], medians[AloneTask], name=_among(limit, model))


def _among(limit: int, model: type[DurableTask]) -> str:
    return f"{limit} among {OTHERS:,} {model.__queue__}"


def claim(
    engine: Engine, model: type[DurableTask], limit: int, front: ClaimWatermark | None = None
) -> list[Claim]:
    """As a worker: one statement, one transaction; with the front that a worker has."""
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        options = {"names": ["charge", "refund"], "worker": "bench", "lease": MINUTE, "limit": limit}
        claimed = claims.claim(session, model, **options, watermark=front)
        session.commit()
    assert len(claimed) == limit
    return claimed


def give_back(engine: Engine, model: type[DurableTask]) -> Callable[[list[Claim]], None]:
    def act(claimed: list[Claim]) -> None:
        with Session(engine) as session, session.begin():
            claims.release(session, model, {c.task_id: c.token for c in claimed})

    return act


def complete(engine: Engine) -> Callable[[list[Claim]], None]:
    def act(claimed: list[Claim]) -> None:
        with Session(engine) as session, session.begin():
            runs.complete_many(
                session, PassingTask, [Completed(claim.task_id, claim.token, "null") for claim in claimed]
            )

    return act


def timed(act: Callable[[], list[Claim]], afterwards: Callable[[list[Claim]], None]) -> float:
    started = time.perf_counter()
    claimed = act()
    spent = time.perf_counter() - started
    afterwards(claimed)
    return spent


def passing(bench: Bench) -> Iterator[Figure]:
    """Milliseconds of a claim of ten, when so many tasks were spawned, claimed by the hundred and completed while a
    transaction holds its snapshot. The limit is the p50 or the p95 before that."""
    engine = bench.own_database(Base.metadata)

    def now(when: str) -> Iterator[Figure]:
        spawn(1000)
        spent = [
            1000 * timed(lambda: claim(engine, PassingTask, 10, front), complete(engine)) for _ in range(100)
        ]
        for name, value in (("p50", statistics.median(spent)), ("p95", p95(spent))):
            yield figure("ms", [value], [first.setdefault(name, value)], name=f"{name} {when}")

    def spawn(tasks: int) -> None:
        with Session(engine) as session, session.begin():
            Durable(session).spawn_many([charge.call(order_id=n) for n in range(tasks)])

    def pass_through(tasks: int) -> None:
        for _ in range(-(-tasks // 1000)):
            spawn(1000)
            for _ in range(10):
                complete(engine)(claim(engine, PassingTask, 100, front))
        # They stand for minutes at a rate that queues have: claims come when they are no longer the latest.
        time.sleep(LATE_COMMIT_S)

    first: dict[str, float] = {}
    front = ClaimWatermark()
    with engine.begin() as connection:  # it must not come in the middle
        connection.execute(text("ALTER TABLE durable_passing_tasks SET (autovacuum_enabled = off)"))
    pass_through(1000)
    yield from now("at first")
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as holder:
        holder.execute(text("SELECT 1"))
        for quarter in range(1, 5):
            pass_through(bench.times(25_000))
            yield from now(f"{quarter}/4 through, xmin held")
    yield from now("released")
    vacuum(engine, PassingTask)
    yield from now("vacuumed")


AMONG = {_among(limit, model): ratio_at_most(GOAL) for limit in (1, 10, 100) for model in CROWDED}
HELD = {f"p95 {quarter}/4 through, xmin held": ratio_at_most(3) for quarter in range(1, 5)}
WORKLOADS = [
    Workload(None, "claim cost", "1,000 pending alone", cost, AMONG),
    Workload(17, "claims while xmin is held", "before", passing, HELD),
]
