"""The example of docs/examples/fulfilment: its worker, killed at every boundary in turn, leaves the same behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from select import select as readable
from typing import Any
from uuid import uuid4
from zlib import crc32

import pytest
from fulfilment.models import Base, Mail, Order, OrderTask, Parcel, Payment, Product, Reservation
from fulfilment.web import place_order, warehouse_webhook
from sqlalchemy import Engine, delete, func, literal, select, text, union_all, update
from sqlalchemy.orm import Session

from tests.children import read_line
from tests.databases import throwaway, url_of
from tests.examples.crashing import QUEUES
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
PARTS = 4  # for as many workers of pytest-xdist
TERMINAL = ("completed", "failed", "cancelled")
ACTIVE = union_all(
    *(
        select(literal(queue.__queue__).label("queue"), queue.state, queue.claimed_by).where(
            queue.state.not_in(TERMINAL)
        )
        for queue in QUEUES
    )
)
NEVER, SOON = timedelta(days=3), timedelta(milliseconds=50)


class Workers:
    """Worker processes on the example's database, one at a time."""

    def __init__(self, url: str, logs: Path) -> None:
        self._url, self._logs = url, logs
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.examples.crashing"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLES}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.id = ""
        self._running = False

    def start(self, die_at: str | None = None) -> None:
        if self._running:  # a test before has failed
            self.end()
        self.id, self._running = uuid4().hex, True
        log = str(self._logs / self.id)
        Path(log).touch()  # it may be killed before it has begun: all was over
        self._say(json.dumps({"url": self._url, "worker_id": self.id, "log": log, "die_at": die_at}))

    @property
    def died(self) -> bool:
        return bool(readable([self._server.stdout], [], [], 0)[0])

    def end(self) -> list[str]:
        """The boundaries that the worker passed. It is killed, or has killed itself."""
        if not self.died:
            self._say("")
        code, self._running = int(read_line(self._server)), False
        assert code == -signal.SIGKILL
        return (self._logs / self.id).read_text().splitlines()

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def _say(self, line: str) -> None:
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()


class Shop:
    """One order from its beginning to its end, each time in an empty database."""

    def __init__(self, engine: Engine, workers: Workers) -> None:
        self._engine, self._workers, self._packed = engine, workers, False

    def order(self, ship_within: timedelta) -> tuple[list[str], Any]:
        """The boundaries that a worker passed, and what there is at the end."""
        passed = self._work_on_a_new_one(ship_within, None)
        return passed, self._state()

    def order_killed_at(self, boundary: str, ship_within: timedelta) -> Any:
        """What there is at the end, where the first worker died at `boundary`."""
        for _ in range(10):  # two ends that are committed together are one boundary less: again, then
            if self._work_on_a_new_one(ship_within, boundary)[-1:] == [boundary]:
                break
        else:
            pytest.fail(f"never came to {boundary}")
        self._workers.start()
        wait_until(self._over, 60, f"the end, after {boundary}")
        self._workers.end()
        return self._state()

    def _work_on_a_new_one(self, ship_within: timedelta, die_at: str | None) -> list[str]:
        self._place(ship_within)
        self._packed = ship_within is SOON  # then nobody packs it
        self._workers.start(die_at)
        wait_until(lambda: self._workers.died or self._over(), 60, f"the end, or {die_at}")
        if die_at is not None:  # a commit is there to be seen before the worker notes it
            with suppress(AssertionError):
                wait_until(lambda: self._workers.died, 2)
        return self._workers.end()

    def _place(self, ship_within: timedelta) -> None:
        with Session(self._engine) as session, session.begin():
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
            session.execute(text("ALTER SEQUENCE orders_id_seq RESTART"))
            session.add(Product(sku="kettle", price=Decimal("24.50"), available=9))
        with Session(self._engine) as session, session.begin():
            place_order(session, "ada@example.org", "kettle", 2, ship_within=ship_within)

    def _over(self) -> bool:
        """Plays the warehouse meanwhile, and the time that passes over a dead worker's lease."""
        with self._engine.connect() as connection:
            active = connection.execute(ACTIVE).all()
            # Waits that were locked when their task went on are deleted a moment later, also after its end.
            waits = connection.execute(select(OrderTask.Wait.step)).first()
        if any(task.state == "running" and task.claimed_by != self._workers.id for task in active):
            self._let_leases_expire()
        if not self._packed and any((task.queue, task.state) == ("orders", "sleeping") for task in active):
            self._packed = True
            with Session(self._engine) as session, session.begin():
                warehouse_webhook(session, 1, ["A", "B"])
        return not active and waits is None

    def _let_leases_expire(self) -> None:
        past = func.clock_timestamp() - timedelta(seconds=1)
        with self._engine.begin() as connection:
            for queue in QUEUES:
                lost = (queue.state == "running") & (queue.claimed_by != self._workers.id)
                connection.execute(update(queue).where(lost).values(lease_expires_at=past))

    def _state(self) -> Any:
        with Session(self._engine) as session:
            tables = {
                "orders": select(Order.email, Order.state),
                "on the shelf": select(Product.available),
                "payments": select(Payment.order_id, Payment.amount),
                "reservations": select(Reservation.order_id, Reservation.quantity, Reservation.state),
                "parcels": select(Parcel.order_id, Parcel.box, Parcel.tracking),
                "mails": select(Mail.to, Mail.text),
                **{f"{q.__queue__} tasks": select(q.name, q.state, q.params, q.result) for q in QUEUES},
                "waits": select(OrderTask.Wait.step),
            }
            return {name: sorted(map(repr, session.execute(rows))) for name, rows in tables.items()}


@pytest.fixture(scope="module")
def shop(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with throwaway(server_url, Base.metadata) as engine:
        workers = Workers(url_of(engine), tmp_path_factory.mktemp("workers"))
        yield Shop(engine, workers)
        workers.close()


def test_its_program_runs(server_url):
    with throwaway(server_url) as engine:
        environ = {**os.environ, "DATABASE_URL": url_of(engine), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "fulfilment"],
            cwd=EXAMPLES,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    *_, first, second, _, _ = done.stdout.splitlines()
    assert first == "order 1: shipped, paid 49.00"
    assert second == "order 2: refunded, paid 24.50, -24.50"


def test_an_order_is_charged_reserved_packed_and_sent_once(shop):
    _, state = shop.order(NEVER)
    assert state["orders"] == ["('ada@example.org', 'shipped')"] and state["on the shelf"] == ["(7,)"]
    assert state["payments"] == ["(1, Decimal('49.00'))"] and state["reservations"] == ["(1, 2, 'shipped')"]
    assert [len(state[table]) for table in ("parcels", "mails", "waits")] == [2, 1, 0]


def test_an_order_that_is_not_packed_in_time_is_refunded(shop):
    _, state = shop.order(SOON)
    assert state["orders"] == ["('ada@example.org', 'refunded')"] and state["on the shelf"] == ["(9,)"]
    assert state["payments"] == ["(1, Decimal('-49.00'))", "(1, Decimal('49.00'))"]
    assert state["reservations"] == ["(1, 2, 'released')"] and state["parcels"] == []
    assert len(state["mails"]) == 1


def part_of(boundaries: list[str], part: int) -> list[str]:
    return [boundary for boundary in boundaries if crc32(boundary.encode()) % PARTS == part]


@pytest.mark.timeout(900)  # half a minute where nothing else runs
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_boundary_an_order_ends_the_same(shop, part):
    boundaries, expected = shop.order(NEVER)
    assert len(boundaries) > 30
    for boundary in part_of(boundaries, part):
        assert shop.order_killed_at(boundary, NEVER) == expected, boundary


@pytest.mark.timeout(900)  # a quarter of a minute, as above
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_boundary_a_refund_ends_the_same(shop, part):
    boundaries, expected = shop.order(SOON)
    waited = boundaries.index("fulfil begins #2")  # until then the other test's are these
    for boundary in part_of(boundaries[waited:], part):
        assert shop.order_killed_at(boundary, SOON) == expected, boundary
