"""C7: the primary dies, and its synchronous standby takes over."""

from __future__ import annotations

from threading import Event, Thread
from uuid import UUID

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.faults.app import TASKS
from tests.faults.checker import DEADLOCK, Finding
from tests.faults.conftest import RATE, seconds
from tests.faults.load import Plan, under_load
from tests.faults.pair import pair


class Witness:
    """Remembers what was completed, as anybody could read it: PostgreSQL shows a commit once the standby has it."""

    def __init__(self, url: str) -> None:
        self.seen: dict[UUID, object] = {}
        self._engine, self._over = create_engine(url), Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        completed = text(f"SELECT id, result FROM {TASKS} WHERE state = 'completed'")
        while not self._over.wait(0.02):
            try:
                with self._engine.connect() as connection:
                    for task_id, result in connection.execute(completed):
                        self.seen.setdefault(task_id, result)
            except DBAPIError:
                self._engine.dispose()

    def end(self) -> dict[UUID, object]:
        self._over.set()
        self._thread.join()
        self._engine.dispose()
        return self.seen


def test_failover_loses_no_acknowledged_spawn_or_completion(figures):
    lasts = seconds(15)
    plan = Plan(tasks=int(RATE * lasts), seconds=lasts)
    with pair() as servers:
        with under_load(servers.primary, servers.url, plan, figures("C7 failover")) as load:
            witness = Witness(servers.primary.url)
            for _ in load.for_a(load.rng.uniform(0.3, 0.6)):
                load.moment(0.1, 0.1)
            load.strike()
            struck = load.now()
            servers.fail_over()
            promoted = load.now()
            seen = witness.end()
            found = load.settle()
            after = text("SELECT min(at) FROM moves WHERE after = 'completed' AND at > :struck")
            now = text(f"SELECT id, result FROM {TASKS} WHERE state = 'completed'")
            with load.engine.connect() as connection:
                completed = {row.id: row.result for row in connection.execute(now)}
                back = connection.scalar(after, {"struck": struck})
        found.recoveries = [load.took(struck, back)]
        found.notes["promotion took (s)"] = round((promoted - struck).total_seconds(), 2)
        found.notes["completions seen before"] = len(seen)
        bound = load.crew.job.recovery + load.took(struck, promoted)
        if lost := [task_id for task_id, result in seen.items() if completed.get(task_id) != result]:
            found.findings.append(Finding("a completion that was seen is lost", len(lost), str(lost[0])))
        if deadlocks := servers.standby.logged("deadlock detected"):
            found.findings.append(Finding(DEADLOCK, deadlocks, "the standby's log says"))
    assert found.findings == []
    assert len(seen) > 20
    found.check_recovery(bound)
