"""Worker processes, and what can be done to them. All are forked from one warm process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from sa_durable.runtime import Worker
from tests.faults import breakages
from tests.faults.app import FaultTask

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.faults.worker_processes", "tests.faults.spawners"])


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    url: str
    log: Path
    worker_id: str = ""
    lease: float = 1.0
    sweep_interval: float = 0.25
    poll_interval: float = 0.25
    concurrency: int = 8
    listen_url: str | None = None
    broken: str | None = None

    @property
    def recovery(self) -> float:
        """Seconds until a task of a lost worker runs again, at the latest, on a machine that has the time."""
        return self.lease + self.sweep_interval + 1


def end_with_parent() -> None:
    """Whatever ends the tests, kill -9 included, ends this process."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def work(job: Job) -> None:
    end_with_parent()
    logging.basicConfig(filename=job.log, level="INFO", format="%(asctime)s %(name)s %(message)s", force=True)
    breakages.apply(job.broken)
    random.seed(job.worker_id)
    Worker(
        job.url,
        [FaultTask],
        concurrency=job.concurrency,
        lease=timedelta(seconds=job.lease),
        sweep_interval=timedelta(seconds=job.sweep_interval),
        poll_interval=timedelta(seconds=job.poll_interval),
        shutdown_timeout=timedelta(seconds=5),
        worker_id=job.worker_id,
        listen_url=job.listen_url,
    ).run()


@dataclass
class Hand:
    """One worker process."""

    job: Job
    process: BaseProcess
    stopped: bool = False

    @property
    def name(self) -> str:
        return self.job.worker_id

    @property
    def log(self) -> str:
        return self.job.log.read_text() if self.job.log.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.join()

    def freeze(self) -> None:
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.stopped = False


class Crew:
    """Workers on one database. Whoever leaves may be replaced; at the end all are told to stop."""

    def __init__(self, job: Job, size: int, directory: Path) -> None:
        self.job, self._size, self._directory = job, size, directory
        self._numbers = count(1)
        self.hands: list[Hand] = []

    def start(self) -> Hand:
        name = f"w{next(self._numbers)}"
        job = replace(self.job, worker_id=name, log=self._directory / f"{name}.log")
        process = FORKS.Process(target=work, args=(job,), daemon=True)
        process.start()
        hand = Hand(job, process)
        self.hands.append(hand)
        return hand

    def alive(self) -> int:
        return sum(hand.process.is_alive() for hand in self.hands)

    def fill(self) -> None:
        """Replace whoever is gone."""
        self.hands = [hand for hand in self.hands if hand.process.is_alive()]
        while len(self.hands) < self._size:
            self.start()

    def stop(self) -> None:
        for hand in self.hands:
            hand.thaw()
            hand.signal(signal.SIGTERM)
        for hand in self.hands:
            hand.process.join(15)
            if hand.process.is_alive():
                hand.kill()
