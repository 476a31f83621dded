"""Upgrades while applications start, and work (C13, C14).

Everyday runs take 20,000 rows; `SA_DURABLE_UPGRADE_ROWS=500000` is the whole of C14.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from sa_durable import verify
from sa_durable.demo.models import Base
from tests.children import read_line
from tests.migrations.host import ROOT, alembic_process, fetch, scalar, url_for
from tests.migrations.rows import PAYMENTS, add_many
from tests.waiting import wait_until

ROWS = int(os.environ.get("SA_DURABLE_UPGRADE_ROWS", "20000"))
GIVE_UP_AFTER_S = 240 + ROWS / 250  # two busy cores upgrade less than 1,000 rows per second
PROGRESS = f"SELECT count(*) FROM {PAYMENTS}"
EVERY_WORKER = f"SELECT count(DISTINCT claimed_by) = 3 FROM {PAYMENTS} WHERE state = 'completed'"


def test_of_twenty_concurrent_migrators_all_succeed_and_one_migrates(empty: Engine):
    migrators = subprocess.run(
        [sys.executable, "-m", "tests.migrations.migrators", "20", url_for(empty)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert migrators.stdout == "0 of 20 failed\n", migrators.stderr
    assert verify(empty, Base.metadata) == []
    assert fetch(empty, "SELECT version_num FROM alembic_version") == [("0002",)]


class LoadProcesses:
    """Processes of tests.migrations.load."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.processes: list[tuple[str, subprocess.Popen[str]]] = []

    def start(self, role: str, number: int) -> None:
        for _ in range(number):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.migrations.load", role, url_for(self.engine)],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            self.processes.append((role, process))
            assert read_line(process) == "at work"

    def stop(self) -> list[tuple[str, dict[str, Any]]]:
        """Stop all processes, assert that none failed, and return their figures."""
        ended = []
        for role, process in self.processes:
            process.terminate()
            said, errors = process.communicate(timeout=60)
            assert process.returncode == 0, f"{role}: {errors}"
            ended.append((role, json.loads(said)))
        return ended


@pytest.fixture
def load(before: Engine) -> Iterator[LoadProcesses]:
    load = LoadProcesses(before)
    yield load
    for _, process in load.processes:
        process.kill()
        process.communicate()


@pytest.mark.timeout(GIVE_UP_AFTER_S + 60)
def test_an_upgrade_does_not_stop_concurrent_work(
    before: Engine, load: LoadProcesses, record_property: Callable[..., None]
):
    add_many(before, ROWS)
    load.start("old_worker", 2)
    load.start("old_spawner", 4)
    spawned = scalar(before, PROGRESS)
    wait_until(lambda: scalar(before, PROGRESS) > spawned + 100, what="the spawners")

    with alembic_process(before, "upgrade", "head") as migrator:
        said, _ = migrator.communicate(timeout=GIVE_UP_AFTER_S)
    assert migrator.returncode == 0, said
    assert verify(before, Base.metadata) == []
    load.start("new_worker", 1)
    load.start("new_spawner", 2)
    hot = "SELECT count(*) = 50 FROM durable_payments_tasks WHERE idempotency_key LIKE 'hot-%'"
    wait_until(lambda: scalar(before, hot), what="the new spawners")
    load.start("new_spawner", 1)  # it finds all keys taken
    wait_until(lambda: scalar(before, EVERY_WORKER), what="both old workers and the new one")
    spawned = scalar(before, PROGRESS)
    wait_until(lambda: scalar(before, PROGRESS) > spawned + 100, what="the old spawners, after the upgrade")

    figures = load.stop()
    record_property("figures", figures)
    print(f"{ROWS} rows", *figures, sep="\n")
    assert {
        role: total for role, one in figures if not (total := one["done"]) and role != "new_spawner"
    } == {}
    assert sum(one["duplicates"] for role, one in figures if role == "new_spawner") > 0
    assert sum(one["done"] for role, one in figures if role == "new_spawner") == 50
    keyed = f"SELECT count(*), count(DISTINCT idempotency_key) FROM {PAYMENTS} WHERE key_hold = 'active'"
    ((rows, different),) = fetch(before, keyed)
    assert rows == different >= 0.9 * ROWS  # no key was given twice, although workers ended tasks meanwhile
