"""The stages of the demo: migrate, spawn, work."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from alembic import command
from alembic.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import Session

from ..ids import uuid7
from .deliveries import Delivery, Event
from .models import Payment, PaymentTask

SPAWNERS = 4
OLD_TASKS = 20  # spawned before the upgrade that adds keys
LEASE_S = 2.0  # a killed worker's tasks are retried after this time
TIMEOUT_S = 120.0


def read_counts(output: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Read what a spawner prints: the deliveries it has committed and the tasks it created, once per line.

    A spawner that is killed can leave its last line cut off in the middle. That line is dropped.
    """
    for line in output:
        if line.endswith("\n"):
            deliveries, created = map(int, line.split())
            yield deliveries, created


class Demo:
    """The processes and the database of one demo. At the end of its block, all its processes have ended.

    Args:
        url: The database's URL.
        events: The file with the deliveries.
        log: The deliveries.
        console: Where progress is shown.
    """

    def __init__(self, url: str, events: Path, log: list[Delivery], console: Console) -> None:
        self.engine = create_engine(url)
        self.console = console
        self._events, self._log = events, log
        self._events_by_id = {delivery.event.id: delivery.event for delivery in log}
        self._processes: list[subprocess.Popen[str]] = []
        self.spawns: list[tuple[int, int]] = [(0, 0)] * SPAWNERS
        """For each spawner: the deliveries it has committed, and the tasks it created."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self.engine.dispose()

    def migrate(self) -> None:
        """Apply revision 0001, spawn tasks, then apply the upgrade that adds keys."""
        config = Config("alembic.ini", attributes={"configure_logger": False})
        logging.getLogger("alembic").setLevel(logging.WARNING)
        command.upgrade(config, "0001")
        old = list(self._events_by_id.values())[:OLD_TASKS]
        self._spawn_without_keys(old)
        self.console.print(f"revision 0001: spawned {len(old)} tasks without keys")
        command.upgrade(config, "head")
        with Session(self.engine) as session:
            keyed = session.scalar(select(func.count()).where(PaymentTask.idempotency_key.is_not(None)))
        self.console.print(f"alembic upgrade head: {keyed} of them got a key from their headers")

    def _spawn_without_keys(self, events: list[Event]) -> None:
        # The old application stored the event's id in a header, and nothing made it unique. Core statements
        # are used, because the ORM would insert columns that this revision doesn't have.
        task = PaymentTask.__table__
        known = ("id", "run_id", "name", "params", "headers", "payment_id")
        with self.engine.begin() as connection:
            for event in events:
                payment = {
                    "id": event.data.payment_id,
                    "amount": event.data.amount,
                    "currency": event.data.currency,
                }
                if connection.scalar(select(Payment.id).where(Payment.id == payment["id"])) is None:
                    connection.execute(insert(Payment), payment)
                row = {
                    "id": uuid7(),
                    "run_id": uuid7(),
                    "name": "handle_event",
                    "params": {"event": event.model_dump(mode="json")},
                    "headers": {"idempotency_key": event.id},
                    "payment_id": event.data.payment_id,
                }
                connection.execute(insert(task).values({name: row[name] for name in known}))  # type: ignore[arg-type]  # a Table

    def spawn(self) -> None:
        """Start four processes that read the log and spawn tasks. Kill the second one in the middle."""
        with self._progress() as progress:
            bars = [
                progress.add_task(f"process {n + 1} spawns", total=len(self._log)) for n in range(SPAWNERS)
            ]
            processes = [self._start("sa_durable.demo.spawner", str(self._events), output=True) for _ in bars]
            readers = [
                Thread(target=self._follow, args=(n, progress, bar, processes[n]))
                for n, bar in enumerate(bars)
            ]
            for reader in readers:
                reader.start()
            victim, bar = processes[1], bars[1]
            self._until(
                lambda: progress.tasks[1].completed >= len(self._log) / 3 or victim.poll() is not None
            )
            victim.send_signal(signal.SIGKILL)
            for reader in readers:
                reader.join(TIMEOUT_S)
            progress.update(bar, description="process 2 [red]killed -9")
            failed = [p.args for i, p in enumerate(processes) if p.wait(TIMEOUT_S) != 0 and i != 1]
        if failed:
            raise RuntimeError(f"spawners failed: {failed}")

    def _follow(self, number: int, progress: Progress, bar: TaskID, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - it was started with a pipe
        for deliveries, created in read_counts(process.stdout):
            self.spawns[number] = deliveries, created
            progress.update(bar, completed=deliveries)

    def work(self) -> None:
        """Start a worker that runs the tasks. Kill it in the middle, and start another one."""
        with self._progress() as progress:
            bar = progress.add_task("worker", total=self._count())
            worker = self._worker()
            self._until(lambda: self._completed(progress, bar) >= progress.tasks[0].total * 0.4)  # type: ignore[operator]  # we set it
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            progress.update(bar, description="worker [red]killed -9[/], second worker")
            worker = self._worker()
            self._until(lambda: self._completed(progress, bar) >= progress.tasks[0].total)  # type: ignore[operator]  # we set it
            progress.update(bar, description="worker [red]killed -9[/], second worker [green]done")
            worker.terminate()
            worker.wait(TIMEOUT_S)

    def _worker(self) -> subprocess.Popen[str]:
        command_line = [
            "sa_durable.demo.app",
            "--concurrency",
            "20",
            "--lease",
            str(LEASE_S),
            "--queue",
            "payments",
        ]
        return self._start("sa_durable.cli", "worker", *command_line)

    def _start(self, module: str, *arguments: str, output: bool = False) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdout=subprocess.PIPE if output else subprocess.DEVNULL,
            stderr=None if os.environ.get("SA_DURABLE_DEMO_LOGS") else subprocess.DEVNULL,
            text=True,
        )
        self._processes.append(process)
        return process

    def _count(self, *states: str) -> int:
        with Session(self.engine) as session:
            counted = select(func.count()).select_from(PaymentTask)
            return session.scalar(counted.where(PaymentTask.state.in_(states)) if states else counted) or 0

    def _completed(self, progress: Progress, bar: TaskID) -> int:
        done = self._count("completed", "failed", "cancelled")
        progress.update(bar, completed=done)
        return done

    def _until(self, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not fact():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the demo did not get to its next stage within {TIMEOUT_S} s")
            time.sleep(0.02)

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        columns = (
            TextColumn("{task.description:40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield progress
