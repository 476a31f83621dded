"""Work under way: two spawners, some workers, and a schedule of faults that a seed decides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.faults.app import TASKS, Base
from tests.faults.checker import DEADLOCK, SPAWN_ERROR, TERMINAL, Checker, Finding
from tests.faults.cluster import Cluster
from tests.faults.figures import Figures
from tests.faults.spawners import Answers, Order, spawn_all
from tests.faults.stalls import Pulse
from tests.faults.worker_processes import FORKS, Crew, Hand, Job


@dataclass
class Plan:
    """How much work, and by whom."""

    tasks: int
    seconds: float
    workers: int = 3
    spawners: int = 2
    pause: float = 0.01
    patience: float = 120.0
    """Seconds that the last tasks get once the faults are over."""
    job: dict[str, object] = field(default_factory=dict)
    broken: str | None = None


class Load:
    """A load on one database, to which faults are done."""

    def __init__(
        self, cluster: Cluster, engine: Engine, plan: Plan, figures: Figures, url: str, place: Path
    ) -> None:
        self.cluster, self.engine, self.plan, self.figures = cluster, engine, plan, figures
        self.rng = Random(f"{figures.seed} {figures.case}")
        self.undisturbed = False
        """Nothing befalls any worker: none may lose a lease. (Not asked where many are at work: one that a busy machine
        keeps waiting loses its leases, too.)"""
        self.may_fail: tuple[str, ...] = ()
        self.crew = Crew(Job(url, place, broken=plan.broken, **plan.job), plan.workers, place)  # type: ignore[arg-type]  # of Job, by name
        self._struck: list[tuple[str, datetime]] = []
        self._log_from = cluster.log_size
        self._answers: list[Answers] = []
        self._spawners: list[BaseProcess] = []
        self._began, self.started = time.monotonic(), self.now()
        self._url, self.pulse = url, Pulse()

    def start(self) -> None:
        plan, self._pipes = self.plan, []
        self.crew.fill()
        for number in range(plan.spawners):
            ours, theirs = FORKS.Pipe(duplex=False)
            seed = f"{self.figures.seed} {number}"
            order = Order(self._url, seed, plan.tasks, plan.tasks / plan.seconds, plan.pause, plan.broken)
            spawner = FORKS.Process(target=spawn_all, args=(order, theirs), daemon=True)
            spawner.start()
            self._spawners.append(spawner)
            self._pipes.append(ours)

    def stop(self) -> None:
        """Whoever is still at it: a spawner would try for ever."""
        for spawner in self._spawners:
            spawner.kill()
            spawner.join()
        self.crew.stop()
        self.pulse.stop()

    @property
    def spawning(self) -> bool:
        return not all(pipe.poll() for pipe in self._pipes)

    def moment(self, shortest: float, longest: float) -> None:
        """Until the next fault: a time that the seed decides."""
        time.sleep(self.rng.uniform(shortest, longest))

    def for_a(self, part: float) -> Iterator[None]:
        """Again and again, until a part of the planned time is over."""
        deadline = time.monotonic() + part * self.plan.seconds
        while time.monotonic() < deadline:
            yield

    def anyone(self) -> Hand | None:
        ready = [hand for hand in self.crew.hands if not hand.stopped]
        return self.rng.choice(ready) if ready else None

    def strike(self, hand: Hand | None = None) -> None:
        """A fault befalls a worker, now, or, without one, the database."""
        self.figures.faults += 1
        if hand is not None:
            self._struck.append((hand.name, self.now()))

    def count(self, sql: str) -> int | None:
        """None: the database is away."""
        with suppress(DBAPIError), self.engine.connect() as connection:
            return int(connection.scalar(text(sql)))
        return None

    def now(self) -> datetime:
        """The time, by the clock that the database has too."""
        return datetime.fromtimestamp(time.time(), UTC)

    def took(self, since: datetime, until: datetime) -> float:
        """Seconds from one moment to another, but for those that the machine stood still."""
        stood_still = self.pulse.stood_still(since, until)
        self.figures.stood_still = max(self.figures.stood_still, stood_still)
        return (until - since).total_seconds() - stood_still

    def pick_up(self, since: datetime, until: datetime) -> list[float]:
        """Seconds from spawn to start of what was spawned between two moments, in order."""
        between = text(
            "SELECT extract(epoch FROM first_started_at - created_at)::float8 AS waited FROM "
            f"{TASKS} WHERE created_at BETWEEN :since AND :until AND parent_id IS NULL ORDER BY 1"
        )
        with self.engine.connect() as connection:
            return list(connection.scalars(between, {"since": since, "until": until}))

    def until(self, fact: Callable[[], object], patience: float) -> bool:
        deadline = time.monotonic() + patience
        while not fact():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def drain(self) -> None:
        """Wait until all spawns are answered and all tasks have ended."""
        open_ = f"SELECT count(*) FROM {TASKS} WHERE state NOT IN {TERMINAL}"
        for pipe in self._pipes:
            if pipe.poll(self.plan.patience):
                self._answers.append(pipe.recv())
        self._pipes = []
        self.crew.fill()
        self.until(lambda: self.count(open_) == 0, self.plan.patience)

    def settle(self) -> Figures:
        """Drain; then ask whether every rule holds."""
        figures = self.figures
        self.drain()
        figures.seconds = round(time.monotonic() - self._began, 1)
        self.crew.stop()
        undisturbed = self._undisturbed if self.undisturbed else None
        checker = Checker(self.engine, undisturbed=undisturbed, may_fail=self.may_fail)
        checker.remember(ack for answers in self._answers for ack in answers.acks)
        figures.findings += [*checker.findings(), *self._said()]
        figures.tasks, figures.effects = (
            checker.count(f"SELECT count(*) FROM {t}") for t in (TASKS, "effects")
        )
        figures.acks = sum(len(answers.acks) for answers in self._answers)
        free, running = self._recoveries()
        figures.recoveries += free
        figures.notes |= {
            "lease": self.crew.job.lease,
            "most attempts": checker.count(f"SELECT max(attempt) FROM {TASKS}"),
            "taken over, or given back": checker.count(
                "SELECT count(*) FROM moves WHERE before = 'running' AND after = 'pending'"
            ),
        }
        if running:
            figures.notes["ran again after (median, longest)"] = [
                round(f(running), 2) for f in (statistics.median, max)
            ]
        if tolerated := sum((answers.tolerated for answers in self._answers), start=Answers().tolerated):
            figures.notes["errors that spawners saw, and tried again"] = dict(tolerated)
        return figures

    def _undisturbed(self, expired: datetime, ended: datetime) -> bool:
        """Whether the machine was there for a lease to be kept, from when it was extended until it was lost."""
        extended = expired - timedelta(seconds=self.crew.job.lease)
        return (
            self.pulse.stood_still(extended, ended) < self.crew.job.lease / 6
        )  # it is extended after a third

    def _said(self) -> Iterator[Finding]:
        if deadlocks := self.cluster.logged("deadlock detected", self._log_from):
            yield Finding(DEADLOCK, deadlocks, "the server's log says")
        for answers in self._answers:
            for error, times in answers.unexpected.items():
                yield Finding(SPAWN_ERROR, times, error)
        if len(self._answers) < self.plan.spawners:
            yield Finding(
                "a spawner got no answer", self.plan.spawners - len(self._answers), "it still tries"
            )

    def _recoveries(self) -> tuple[list[float], list[float]]:
        """For each task that a struck worker held: seconds from the fault until it could be claimed again, and until it
        was, behind those that had waited for longer."""
        lost = text(
            "SELECT lost.worker_before, lost.at, "
            "(SELECT max(c.at) FROM moves c WHERE c.task_id = lost.task_id AND c.id < lost.id AND c.after = 'running'), "
            "(SELECT min(n.at) FROM moves n WHERE n.task_id = lost.task_id AND n.id > lost.id AND n.after = 'running') "
            "FROM moves lost WHERE lost.before = 'running' AND lost.after = 'pending'"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(lost).all()
        free, running = [], []
        for worker, at, began, again in rows:
            if struck := [moment for name, moment in self._struck if name == worker and began < moment < at]:
                free.append(self.took(struck[0], at))
                if again is not None:
                    running.append(self.took(struck[0], again))
        return free, running


@contextmanager
def under_load(
    cluster: Cluster, url: str, plan: Plan, figures: Figures, *, through: str | None = None
) -> Iterator[Load]:
    """Workers and spawners at work on a new database at `url`, until the block ends. They go `through` another URL."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with TemporaryDirectory(prefix="sa-durable-faults-") as place:
        load = Load(cluster, engine, plan, figures, through or url, Path(place))
        try:
            load.start()
            yield load
        finally:
            load.stop()
            engine.dispose()
