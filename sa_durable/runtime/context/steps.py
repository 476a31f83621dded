"""Save steps, put runs to sleep and extend their leases: blocking functions that contexts call."""

from __future__ import annotations

from datetime import datetime, timedelta

from ...services import checkpoints, runs
from ...values import Json
from ..connections.database import Database
from ..runs.active import ActiveRun
from ..runs.lease import extend, write_while_leased
from ..threads.wakeup import Wakeup
from .checkpoint_saver import CheckpointSaver


class Steps:
    """Operations on the checkpoints and the lease of a run.

    Each of them raises the signal that ends the run (Cancelled, LeaseLost), if one has.

    Args:
        database: The worker's database.
        lease: How long an extended lease lasts.
        asleep: Set when a run has gone to sleep.
    """

    def __init__(self, database: Database, *, lease: timedelta, asleep: Wakeup) -> None:
        self._database, self._lease, self._asleep = database, lease, asleep
        self._saver = CheckpointSaver(database)

    def save(self, run: ActiveRun, name: str, text: str) -> Json:
        """Save a checkpoint and return the value that is stored under its name.

        Args:
            run: The run whose step it is.
            name: The step's key.
            text: The value, as JSON text.
        """

        def write() -> Json:
            if (saved := self._saver.save(run, name, text)) is not None:
                return saved.value
            with self._database.autocommit() as session:
                return checkpoints.save(session, run.model, run.claim, name, text)

        return write_while_leased(run, write)

    def now(self, run: ActiveRun, name: str) -> str:
        """Save the database's time as a checkpoint and return the stored time, in ISO format."""

        def write() -> str:
            with self._database.autocommit() as session:
                return checkpoints.save_wake_time(session, run.model, run.claim, name, delay=timedelta(0))

        return write_while_leased(run, write)

    def extend(self, run: ActiveRun) -> None:
        """Extend the lease of a run now."""
        write_while_leased(run, lambda: extend(self._database, run.model, [run], self._lease))
        run.check()

    def sleep(self, run: ActiveRun, name: str, delay: timedelta | None, until: datetime | None) -> bool:
        """Put the run to sleep. Returns False if the time has passed already, so that the run goes on.

        Args:
            run: The run.
            name: Key of the checkpoint that keeps the wake time.
            delay: How long to sleep, or None.
            until: When to wake, if `delay` is None.
        """

        def write() -> bool:
            with self._database.transaction() as session:
                return runs.sleep(session, run.model, run.claim, name, delay=delay, until=until)

        with run.finishing_block():
            slept = write_while_leased(run, write)
            if slept:
                run.mark_asleep()
        if slept:
            self._asleep.set()
        return slept
