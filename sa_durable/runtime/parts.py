"""The parts of a worker, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .connections.database import Database
from .connections.engines import EngineOrUrl, engine_for
from .connections.plan_cache import PlanCache
from .connections.schema_check import check_schema
from .context.operations import CONTEXT_THREADS, ContextOperations
from .context.steps import Steps
from .context.transactions import AsyncSessionFactory, SessionFactory, Transactions
from .context.waits import Waits
from .execution.dispatcher import Dispatcher
from .execution.executor import Executor
from .execution.timeouts import Timeouts
from .loops.claimer import Claimer
from .loops.cleaner import Cleaner
from .loops.heartbeat import Heartbeat
from .loops.listener import Listener
from .loops.sweeper import Sweeper
from .loops.waker import Waker
from .runs.active import ActiveRun, ActiveRuns
from .runs.capacity import Capacity
from .runs.completer import Completer
from .runs.registry import Registry
from .threads.event_loop import EventLoopHandle
from .threads.periodic import PeriodicThread
from .threads.pool import DaemonThreadPool
from .threads.wakeup import Wakeup
from .tuning import DEFAULT_TUNING, Tuning
from .worker_options import WorkerOptions

if TYPE_CHECKING:
    from ..models import DurableTask

AcceptRuns: TypeAlias = Callable[[list[ActiveRun]], None]
OnError: TypeAlias = Callable[[ActiveRun, BaseException], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Databases:
    """The worker's databases: one for each role, so that no role waits for another one's connections."""

    claims: Database
    """Claims, and enabling and disabling notifications."""
    outcomes: Database
    heartbeats: Database
    wakes: Database
    sweeps: Database
    """Sweeps and cleanups."""
    steps: Database
    """Checkpoints and waits of handlers."""
    listens: Database | None
    """The listening connection. None: the worker only polls."""
    owned: tuple[Database, ...]
    """Those that `close` closes."""

    @classmethod
    def connect(cls, engine: EngineOrUrl, options: WorkerOptions, tuning: Tuning) -> Databases:
        """Make a database, with its own pool, for each role. They connect when they are used."""
        source, plans = engine_for(engine), PlanCache(tuning)
        names = ("claims", "outcomes", "heartbeats", "wakes", "sweeps", "steps")
        roles = {name: Database(source, plans=plans) for name in names}
        listens = None
        if options.notify:
            listens = Database(source if options.listen_url is None else engine_for(options.listen_url))
        owned = (*roles.values(), *([listens] if listens else []))
        return cls(**roles, listens=listens, owned=owned)

    @classmethod
    def shared(cls, one: Database) -> Databases:
        """Use one database, which the caller closes, for all roles. Nothing listens."""
        return cls(
            claims=one, outcomes=one, heartbeats=one, wakes=one, sweeps=one, steps=one, listens=None, owned=()
        )

    def close(self) -> None:
        """Close the connections."""
        for database in self.owned:
            database.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """The parts of one worker.

    None of their threads is started. Each part's class says what the part does.
    """

    databases: Databases
    registry: Registry
    loop: EventLoopHandle
    active: ActiveRuns
    capacity: Capacity
    tasks_ready: Wakeup
    """The claimer's wake-up: a task became claimable, or a slot is free."""
    sleepers_changed: Wakeup
    """The waker's wake-up: there may be a new sleeper, event or ended task."""
    completer: Completer
    timeouts: Timeouts
    operations: ContextOperations
    executor: Executor
    dispatcher: Dispatcher
    heartbeat: Heartbeat
    waker: Waker
    sweeper: Sweeper
    cleaner: Cleaner
    listener: Listener | None
    claimer: Claimer

    @property
    def background_threads(self) -> list[PeriodicThread]:
        """All periodic threads except the claimer (stops first) and the completer (stops last)."""
        parts = (self.waker, self.sweeper, self.cleaner, self.timeouts, self.heartbeat, self.listener)
        return [part.thread for part in parts if part is not None]

    async def check_schema(self) -> None:
        """Check the tables of all queues. Raises SchemaOutdated."""
        await self.operations.threads.call(check_schema, self.databases.claims, self.registry.queues)

    def stop_accepting(self) -> None:
        """Start no more runs, give back those that wait for a slot, and stop listening. From any thread."""
        if self.listener is not None:
            self.listener.thread.stop()
        self.dispatcher.stop()

    def close(self) -> None:
        """Let idle threads end, and close the worker's connections. From any thread."""
        self.executor.close()
        self.operations.close()
        self.databases.close()


def build_parts(
    engine: EngineOrUrl,
    queues: Iterable[type[DurableTask]],
    options: WorkerOptions,
    *,
    session_factory: SessionFactory | None,
    async_session_factory: AsyncSessionFactory | None,
    tuning: Tuning = DEFAULT_TUNING,
    database: Database | None = None,
    accept: AcceptRuns | None = None,
    on_error: OnError | None = None,
) -> WorkerParts:
    """Make the parts of a worker, each after the parts that it uses.

    Args:
        engine: What the application connects with.
        queues: The task classes whose tasks the worker runs.
        options: The worker's options.
        session_factory: Makes the sessions of sync transactions. None: plain sessions on `engine`.
        async_session_factory: Makes the sessions of async transactions. None: plain sessions on `engine`.
        tuning: Constants that tests change.
        database: One database for all roles, which the caller closes. None: one for each role.
        accept: Called with claimed runs, in the claimer's thread. None: the dispatcher starts them on the
            loop.
        on_error: Called with what a handler raised, before it is stored. On the loop or in a thread.

    Raises:
        UnknownQueue: `queues` is empty, or one of them is no task class with a queue.
    """
    registry = Registry(queues, tuning)
    to = Databases.connect(engine, options, tuning) if database is None else Databases.shared(database)
    loop, active, capacity = EventLoopHandle(), ActiveRuns(), Capacity(options.concurrency, options.prefetch)
    tasks_ready, sleepers_changed = Wakeup(), Wakeup()
    completer = Completer(to.outcomes, active, tasks_ready=tasks_ready, sleepers_changed=sleepers_changed)
    timeouts = Timeouts(active, completer)
    operations = ContextOperations(
        Steps(to.steps, lease=options.lease, asleep=sleepers_changed),
        Waits(to.steps, asleep=sleepers_changed, ready=tasks_ready),
        Transactions(engine, session_factory, async_session_factory),
        DaemonThreadPool("sa_durable context", CONTEXT_THREADS),
        DaemonThreadPool("sa_durable transaction", options.concurrency),
    )
    executor = Executor(
        registry,
        operations,
        completer,
        timeouts,
        active,
        concurrency=options.concurrency,
        on_task_stored=sleepers_changed.set,
        on_error=on_error,
    )
    dispatcher = Dispatcher(
        capacity,
        start=executor.start,
        is_sync=executor.is_sync,
        release=completer.release,
        loop=loop,
        tasks_ready=tasks_ready,
    )
    waker = Waker(
        to.wakes,
        registry,
        capacity,
        poll_interval=options.poll_interval,
        tasks_ready=tasks_ready,
        sleepers_changed=sleepers_changed,
        tuning=tuning,
    )
    sweeper = Sweeper(
        to.sweeps,
        registry,
        sweep_interval=options.sweep_interval,
        tasks_ready=tasks_ready,
        sleepers_changed=sleepers_changed,
    )
    listener = None
    if to.listens is not None:
        listener = Listener(
            to.listens,
            to.claims,
            registry.queues,
            tasks_ready=tasks_ready,
            sleepers_changed=sleepers_changed,
            tuning=tuning,
        )
    claimer = Claimer(
        to.claims,
        registry,
        active,
        capacity,
        worker_id=options.worker_id,
        lease=options.lease,
        poll_interval=options.poll_interval,
        accept=accept or dispatcher.accept_threadsafe,
        tasks_ready=tasks_ready,
        listener=listener,
        waker=waker,
        tuning=tuning,
    )
    return WorkerParts(
        databases=to,
        registry=registry,
        loop=loop,
        active=active,
        capacity=capacity,
        tasks_ready=tasks_ready,
        sleepers_changed=sleepers_changed,
        completer=completer,
        timeouts=timeouts,
        operations=operations,
        executor=executor,
        dispatcher=dispatcher,
        heartbeat=Heartbeat(to.heartbeats, active, lease=options.lease, tuning=tuning),
        waker=waker,
        sweeper=sweeper,
        cleaner=Cleaner(to.sweeps, registry, tuning),
        listener=listener,
        claimer=claimer,
    )
