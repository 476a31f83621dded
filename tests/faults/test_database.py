"""C3 and C4: what befalls the database's processes."""

from __future__ import annotations

from statistics import median, quantiles

from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.faults import scenarios
from tests.faults.app import TASKS, whole
from tests.faults.cluster import cluster
from tests.faults.conftest import RATE, seconds
from tests.faults.load import Load, Plan, under_load


def shown(waits: list[float]) -> list[int]:
    """Median and 95th percentile in milliseconds."""
    return [round(1000 * value) for value in (median(waits), quantiles(waits, n=20)[-1])]


def test_server_crashes_lose_and_repeat_nothing(figures):
    lasts = seconds(25)
    plan = Plan(tasks=int(RATE * lasts), seconds=lasts)
    with cluster() as server, under_load(server, server.url, plan, figures("C3 immediate restart")) as load:
        back = []
        while load.spawning:
            load.moment(1.5, 4)
            load.strike()
            server.crash()
            load.moment(0, 0.5)
            server.start()
            back.append(load.now())
        found = load.settle()
        first = text("SELECT min(at) FROM moves WHERE after = 'completed' AND at > :back")
        with load.engine.connect() as connection:
            ends = [(moment, connection.scalar(first, {"back": moment})) for moment in back]
        found.recoveries = [load.took(moment, end) for moment, end in ends if end]
        bound = load.crew.job.recovery
        found.notes["recovery"] = (
            "seconds from the server's return to the first task that was completed after it"
        )
    assert found.findings == []
    found.check_recovery(bound)
    assert found.faults >= 4


def probe(load: Load) -> list[float]:
    """Seconds until each of some tasks starts, that are spawned one by one with idle workers."""
    since = load.now()
    for _ in range(20):
        with Session(load.engine) as session, session.begin():
            task_id = Durable(session).spawn(whole.call(pause=0.0)).task_id
        ended = f"SELECT count(*) FROM {TASKS} WHERE id = '{task_id}' AND state = 'completed'"
        assert load.until(lambda: load.count(ended), 20)  # noqa: B023 - asked at once
    return load.pick_up(since, load.now())


def test_terminated_backends_lose_nothing_and_notifications_return(loaded):
    job = {"poll_interval": 1.0}
    with loaded("C4 pg_terminate_backend", 20, tasks=300, job=job) as load:
        while load.spawning:
            scenarios.terminate_backends(load)
        load.drain()
        picked_up = probe(load)
        found = load.settle()
        found.notes["pick-up afterwards (median, p95; ms)"] = shown(picked_up)
    assert found.findings == []
    assert found.faults >= 50
    assert median(picked_up) < load.crew.job.poll_interval / 4
