"""C11: handlers and params that no worker survives, or no handler takes."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_durable import Durable
from tests.faults.app import TASKS, exits, recurses, unreadable

EACH = 4
SECOND = timedelta(seconds=1)


def test_poison_fails_within_its_attempts_and_leaves_the_others_alone(loaded):
    with loaded("C11 poison", 15, tasks=300) as load:
        with Session(load.engine) as session, session.begin():
            for handler in (exits, recurses, unreadable):
                for _ in range(EACH):
                    Durable(session).spawn(handler.call(number=1), delay=load.rng.uniform(0, 8) * SECOND)
            # PostgreSQL holds it, Python refuses to read so many digits.
            digits = text(f"UPDATE {TASKS} SET params = CAST(:params AS jsonb) WHERE name = 'unreadable'")
            session.execute(digits, {"params": f'{{"number": {"9" * 5000}}}'})
        deaths = 0
        open_ = f"SELECT count(*) FROM {TASKS} WHERE state IN ('pending', 'running', 'sleeping')"
        while load.spawning or load.count(open_):
            load.moment(0.05, 0.05)
            before = len(load.crew.hands)
            deaths += before - load.crew.alive()
            load.crew.fill()
        load.may_fail = ("exits", "recurses", "unreadable")
        load.figures.faults = deaths
        found = load.settle()
        ended = text(
            f"SELECT name, state, min(attempt), max(attempt), count(*) FROM {TASKS} WHERE name = ANY (:names) "
            "GROUP BY 1, 2 ORDER BY 1"
        )
        most = f"SELECT max(attempt) FROM {TASKS} WHERE NOT name = ANY (:names)"
        names = {"names": list(load.may_fail)}
        with load.engine.connect() as connection:
            [exited, recursed, unread] = map(tuple, connection.execute(ended, names))
            found.notes["most attempts of others"] = connection.scalar(text(most), names)
        found.notes["processes that ended themselves"] = deaths
    assert found.findings == []
    assert exited == ("exits", "failed", 3, 3, EACH)
    assert recursed == ("recurses", "failed", 3, 3, EACH)
    # Never retried, but taken along when its process ends.
    assert unread[:3] == ("unreadable", "failed", 1) and unread[3] <= 3 and unread[4] == EACH
