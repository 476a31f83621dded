"""Which rows get a key, which are left without, and what a live spawn changes about that."""

from __future__ import annotations

import json
import logging
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text

from sa_durable import Hold
from sa_durable.alembic import ONCE, BackfillReport, pages
from sa_durable.derived_key import once_key
from tests.migrations.host import execute, fetch, operate
from tests.migrations.rows import PAYMENTS, SOURCE, add, keys
from tests.waiting import in_thread, wait_until


def backfill(engine: Engine, source: Any = SOURCE, **options: Any) -> BackfillReport:
    [report] = operate(engine, lambda op: op.durable_add_key(PAYMENTS, source=source, **options))
    return report


STARTED = "2026-02-01T00:00:00Z"
P, Q, S = ({"state": s} for s in ("pending", "running", "sleeping"))
C, F, X = ({"state": s} for s in ("completed", "failed", "cancelled"))
RUN = {"state": "running", "first_started_at": STARTED}
WOKEN = {"state": "pending", "first_started_at": STARTED}


@pytest.mark.parametrize(
    ("hold", "rows", "heir"),
    [
        # active: the oldest active one
        ("active", [P], 0),
        ("active", [C, P], 1),
        ("active", [P, C], 0),
        ("active", [F, S, Q, P], 1),
        ("active", [X, C, F], 0),
        # queued: one that has started holds nothing
        ("queued", [P, P], 0),
        ("queued", [RUN, P], 1),
        ("queued", [WOKEN, C, S], 2),
        ("queued", [C, RUN], 1),
        # succeeded and forever: terminal ones count, after active ones
        ("succeeded", [C, P], 1),
        ("succeeded", [F, C, C], 1),
        ("succeeded", [F, X], 0),
        ("forever", [F, P], 1),
        ("forever", [F, C], 0),
    ],
)
def test_of_the_rows_that_want_one_key_the_oldest_active_one_gets_it(before: Engine, hold, rows, heir):
    ids = add(before, [{**row, "key": "k"} for row in rows])

    report = backfill(before, hold=hold)

    assert keys(before) == {ids[heir]: "k"}
    assert fetch(before, f"SELECT key_hold, key_expires_at FROM {PAYMENTS} WHERE idempotency_key = 'k'") == [
        (hold, None)
    ]
    assert (report.keyed, report.duplicates) == (1, len(rows) - 1)
    assert report.duplicate_ids == tuple(id_ for id_ in ids if id_ != ids[heir])
    assert fetch(before, f"SELECT count(*) FROM {PAYMENTS}") == [(len(rows),)]


def test_the_oldest_wins_across_pages_whatever_the_order_of_ids(before: Engine):
    ids = add(before, [{"key": f"k{n % 7}"} for n in range(70)])

    backfill(before, batch_size=3)

    assert keys(before) == {ids[n]: f"k{n}" for n in range(7)}


def test_keys_that_spawn_would_refuse_are_left_out_and_listed(before: Engine, caplog):
    ids = add(before, [{"key": k} for k in ("", "x" * 256, "~once1:abc", "é" * 255, "x", None)])

    with caplog.at_level(logging.WARNING, "sa_durable.alembic"):
        report = backfill(before)

    assert keys(before) == {ids[3]: "é" * 255, ids[4]: "x"}
    assert (report.refused, report.refused_ids) == (3, tuple(ids[:3]))
    assert (report.duplicates, report.keyed) == (0, 2)
    [record] = caplog.records
    assert "3 rows are left without a key" in record.message
    assert str(ids[0]) in record.message


def test_the_warning_counts_all_duplicates_and_lists_the_first(before: Engine, caplog):
    ids = add(before, [{"key": "k"} for _ in range(30)])

    with caplog.at_level(logging.WARNING, "sa_durable.alembic"):
        report = backfill(before)

    assert report.duplicates == 29
    assert report.duplicate_ids == tuple(ids[1:21])
    assert "29 rows are left without a key because another row has the same key" in caplog.text


def test_without_a_source_no_row_gets_a_key(before: Engine):
    add(before, [{"key": "k"}])

    assert operate(before, lambda op: op.durable_add_key()) == []

    assert keys(before) == {}


def test_a_source_is_any_sql_of_the_row(before: Engine):
    ids = add(before, [{"key": "a%b:c"}, {"key": "d"}])

    backfill(
        before,
        "CASE WHEN headers->>'idempotency_key' LIKE 'a%' THEN name || ':x%' || '\"{table}\"' END -- :no",
    )

    assert keys(before) == {ids[0]: 'charge:x%"{table}"'}


def test_running_it_again_changes_nothing(before: Engine):
    add(before, [{"key": f"k{n % 5}", "state": state} for n in range(20) for state in ("pending", "failed")])
    add(before, [{"key": "over", "state": "failed"} for _ in range(3)])
    first = backfill(before)
    had = keys(before)

    again = backfill(before)

    assert keys(before) == had
    assert (first.keyed, again.keyed) == (6, 0)
    assert again.duplicate_ids == first.duplicate_ids


def test_running_it_again_gives_keys_to_rows_that_came_later(before: Engine):
    [first] = add(before, [{"key": "a"}])
    backfill(before)
    late = add(before, [{"key": "a"}, {"key": "b"}])  # by a spawner of the release before

    backfill(before)

    assert keys(before) == {first: "a", late[1]: "b"}


def test_a_rerun_gives_the_key_of_an_ended_holder_to_the_next_active_row(before: Engine):
    ids = add(before, [{"key": "a"}, {"key": "a"}, {"key": "a", "state": "failed"}])
    backfill(before)
    execute(before, f"UPDATE {PAYMENTS} SET state = 'completed' WHERE id = '{ids[0]}'")

    backfill(before)

    assert keys(before) == {ids[0]: "a", ids[1]: "a"}


@pytest.mark.parametrize("commits", [True, False])
def test_a_live_spawn_that_takes_a_key_in_between_wins_if_it_commits(before: Engine, commits, caplog):
    ids = add(before, [{"key": f"k{n}"} for n in range(20)])
    operate(before, lambda op: op.durable_add_key())
    spawned = uuid4()
    with before.connect() as spawner, caplog.at_level(logging.INFO, "sa_durable.alembic"):
        spawner.execute(
            text(
                f"INSERT INTO {PAYMENTS} (id, name, params, run_id, idempotency_key, key_hold)"
                " VALUES (:id, 'charge', '{}', :id, 'k7', 'active')"
            ),
            {"id": spawned},
        )
        filling = in_thread(backfill, before)
        wait_until(lambda: "waiting" in caplog.text)
        if commits:
            spawner.commit()
        else:
            spawner.rollback()
        report = filling.result(timeout=120)

    left = {ids[7]} if commits else set()
    expected = {id_: f"k{n}" for n, id_ in enumerate(ids) if id_ not in left}
    assert keys(before) == ({**expected, spawned: "k7"} if commits else expected)
    assert set(report.duplicate_ids) == left


def test_a_locked_row_is_deferred_while_the_others_get_their_keys(before: Engine, caplog):
    ids = add(before, [{"key": f"k{n}"} for n in range(20)])
    operate(before, lambda op: op.durable_add_key())
    with before.connect() as other, caplog.at_level(logging.INFO, "sa_durable.alembic"):
        other.execute(text(f"UPDATE {PAYMENTS} SET state = 'completed' WHERE id = :id"), {"id": ids[0]})
        filling = in_thread(backfill, before, batch_size=4)
        wait_until(lambda: len(keys(before)) == 19 and "waiting" in caplog.text)
        other.commit()
        filling.result(timeout=120)

    assert keys(before) == {id_: f"k{n}" for n, id_ in enumerate(ids)}


def test_a_winner_that_ends_during_the_backfill_makes_way_for_the_next(before: Engine, caplog):
    ids = add(before, [{"key": "k"}, {"key": "k"}])
    operate(before, lambda op: op.durable_add_key())
    with before.connect() as worker, caplog.at_level(logging.INFO, "sa_durable.alembic"):
        worker.execute(text(f"UPDATE {PAYMENTS} SET state = 'failed' WHERE id = :id"), {"id": ids[0]})
        filling = in_thread(backfill, before)
        wait_until(lambda: "waiting" in caplog.text)
        worker.commit()
        filling.result(timeout=120)

    assert keys(before) == {ids[1]: "k"}


PARAMS = [
    {},
    {"b": 1, "a": [1, {"z": None, "y": True}]},
    {"n": 2**53 - 1, "m": 2**53, "k": -(2**70)},
    {"f": 1.0, "g": 0.1, "h": -0.0, "i": 1e16, "j": 1.5e300, "k": 5e-324},
    {"text": 'é 😀 "quoted" \\ \n', "": "empty", "😀": 1, "\ue000": 2, "~x": 3},
    [1, 2.5, "three"],
    "just text",
    None,
]


def test_once_gives_each_row_the_key_that_spawn_would_compute(before: Engine):
    ids = [uuid4() for _ in PARAMS]
    statement = text(
        f"INSERT INTO {PAYMENTS} (id, name, params, run_id) VALUES (:id, :name, CAST(:params AS jsonb), :id)"
    )
    rows = [
        {"id": i, "name": f"n{n % 3}", "params": json.dumps(p)}
        for n, (i, p) in enumerate(zip(ids, PARAMS, strict=True))
    ]
    with before.begin() as connection:
        connection.execute(statement, rows)
        connection.execute(statement, [{**rows[0], "id": uuid4()}])  # a duplicate
        connection.execute(statement, [{**rows[0], "id": uuid4(), "params": '{"x": 1e5000}'}])  # no spawn's

    report = backfill(before, ONCE, batch_size=3)

    assert keys(before) == {
        i: once_key(f"n{n % 3}", p) for n, (i, p) in enumerate(zip(ids, PARAMS, strict=True))
    }
    assert (report.keyed, report.duplicates, report.refused) == (len(PARAMS), 1, 1)


def test_a_repeated_page_gives_no_key_twice_even_if_its_holder_has_ended(before: Engine):
    older, younger = add(before, [{"key": "k"}, {"key": "k"}])
    operate(before, lambda op: op.durable_add_key())
    page = pages.assign(PAYMENTS, Hold.ACTIVE, "0", "10")
    with before.connect() as connection:
        connection.execute(text(pages.CREATE))
        connection.execute(text(pages.gather(PAYMENTS, SOURCE, f"'{pages.FIRST_ID}'", "ALL")))
        for statement in pages.GROUP:
            connection.execute(text(statement))
        assert tuple(connection.execute(text(page)).one()) == (1, 1)
        connection.execute(text(f"UPDATE {PAYMENTS} SET state = 'completed' WHERE id = :id"), {"id": older})
        assert tuple(connection.execute(text(page)).one()) == (0, 0)
        rows = connection.execute(text(f"SELECT id FROM {PAYMENTS} WHERE idempotency_key = 'k'")).scalars()
        assert list(rows) == [older]
        assert younger != older
