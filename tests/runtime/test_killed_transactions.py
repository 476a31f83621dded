"""B26: a process is killed at each point around the commit of ctx.transaction, or of a transactional handler.

`SA_DURABLE_KILLS=200` kills so many processes for each variant; by default each point has its turn once or twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from sa_durable.services import maintenance
from tests.children import read_line
from tests.runtime.audit_app import HANDLERS, Entry, LedgerTask, abook, book, close_books
from tests.runtime.conftest import ROOT, Shop
from tests.runtime.transaction_helpers import VARIANTS

KILLS = int(os.environ.get("SA_DURABLE_KILLS", "0"))


@contextmanager
def forker(*arguments: str) -> Iterator[Callable[[], int]]:
    """Runs workers, one after the other: each call returns how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.forked_worker", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def run() -> int:
        process.stdin.write("\n")
        process.stdin.flush()
        return int(read_line(process))

    try:
        yield run
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it and its children
        process.communicate()


def take_over(books: Shop) -> None:
    """What a sweep does once the leases of a dead worker are over."""
    with Session(books.engine) as session, session.begin():
        running = update(LedgerTask).where(LedgerTask.state == "running")
        session.execute(running.values(lease_expires_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 1)))
        maintenance.sweep_expired(session, LedgerTask, limit=100)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("variant", "async_driver"), VARIANTS)
def test_rows_are_written_exactly_once_wherever_the_process_is_killed(
    books, ledger_url, variant, async_driver
):
    handler, points = HANDLERS[variant]
    doomed = {
        books.spawn(handler.call(point)): point for point in islice(cycle(points), KILLS or len(points))
    }
    books.spawn(close_books.call())
    ends: Counter[int] = Counter()
    with forker(ledger_url, async_driver) as run_worker:
        while not ends[0]:
            ends[run_worker()] += 1
            take_over(books)
            assert set(ends) <= {0, -signal.SIGKILL} and ends[-signal.SIGKILL] <= len(doomed), ends
    assert ends[-signal.SIGKILL] == len(doomed)
    with Session(books.engine) as session:
        written = Counter(session.scalars(select(Entry.task_id)))
        entries = {entry.task_id: entry for entry in session.scalars(select(Entry))}
    assert written == Counter(list(doomed))
    for task_id, point in doomed.items():
        task, entry = books.task(task_id), entries[task_id]
        first = _first_attempts(variant)[point]
        assert task.state == "completed" and task.result["entry"] == entry.id, (point, task)
        assert entry.attempt in first, (point, entry.attempt)
        assert [run.error["type"] for run in books.runs(task_id)] == (task.attempt - 1) * ["LeaseExpired"]
        assert task.attempt in (first if "whole" in variant else (2,)), (point, task.attempt)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("handler", [book, abook])
def test_batch_killed_before_its_flush_reruns_and_writes_once(books, ledger_url, handler):
    spawned = [books.spawn(handler.call("flushing")) for _ in range(30)]
    books.spawn(close_books.call())
    kills, lost = 0, 0
    with forker(ledger_url, "postgresql+psycopg", "10") as run_worker:
        while run_worker() != 0:
            kills += 1
            take_over(books)
            with Session(books.engine) as session:
                lost = max(lost, session.scalar(select(func.count()).select_from(Entry)))
            assert kills <= len(spawned)
    assert kills and lost > 1, "or else no batch died"
    with Session(books.engine) as session:
        assert Counter(session.scalars(select(Entry.task_id))) == Counter(spawned)
        entries = {entry.task_id: entry.id for entry in session.scalars(select(Entry))}
    tasks = {task_id: books.task(task_id) for task_id in spawned}
    assert {task.state for task in tasks.values()} == {"completed"}
    assert {task_id: task.result["entry"] for task_id, task in tasks.items()} == entries
    assert max(task.attempt for task in tasks.values()) > 1


def _first_attempts(variant: str) -> dict[str, tuple[int, ...]]:
    """In which attempts the entry may have been written, by where the first one died."""
    _, points = HANDLERS[variant]
    kept = points[points.index("committing") + 1 :]
    # A COMMIT without a reader may have been read.
    return {point: (1,) if point in kept else (1, 2) if point == "committing" else (2,) for point in points}
