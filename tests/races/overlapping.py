"""Two transactions that overlap just so: the first has sent so many statements when the second one comes.

Nothing is left to chance. The first one is held before its next statement, in a thread of its own; the second one goes
on until it is done, or until PostgreSQL says that it waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.orm import Session

from sa_durable import errors
from sa_durable.services.checkpoints import AlreadySaved
from sa_durable.services.execute import ensure_schema
from tests.shop import BillingTask, MailTask
from tests.waiting import BLOCKED, in_thread, pid_of

LONGEST = 30.0
# What an act may find out: each is documented, and leaves the transaction usable.
FINDINGS = (
    AlreadySaved,
    errors.Cancelled,
    errors.DuplicateTask,
    errors.IdempotencyConflict,
    errors.InvalidState,
    errors.KeyTaken,
    errors.LeaseLost,
    errors.TaskNotFound,
)
Acting = Callable[[Session], object]


@dataclass
class Part:
    """A transaction that is on its way. `outcome`: "done", or the error that it came to."""

    session: Session
    pid: int
    outcome: Future[str]
    sent: int = 0
    held: bool = False

    def __post_init__(self) -> None:
        self.go = Event()


class Stage:
    """Where transactions overlap: an engine, and a connection that watches."""

    def __init__(self, engine: Engine, watching: Connection) -> None:
        self._engine, self._watching = engine, watching

    @contextmanager
    def part(self, act: Acting, *, hold_after: int | None = None) -> Iterator[Part]:
        """`act` in a transaction, in a thread; held before what it sends after its first `hold_after` statements."""
        with Session(self._engine) as session:
            part = Part(session, pid_of(session), Future())
            connection = session.connection()

            def before(*_: Any) -> None:
                if part.sent == hold_after and not part.go.is_set():
                    part.held = True
                    assert part.go.wait(LONGEST), "nobody let it go on"
                part.sent += 1

            event.listen(connection, "before_cursor_execute", before)
            part.outcome = in_thread(_outcome, act, session)
            try:
                yield part
            finally:
                part.go.set()
                part.outcome.exception(LONGEST)
                event.remove(connection, "before_cursor_execute", before)

    def until_still(self, part: Part) -> bool:
        """Wait until a part is done, held, or waits for another client's lock. True: it waits."""
        deadline = time.monotonic() + LONGEST
        while not part.outcome.done() and not (part.held and not part.go.is_set()):
            if self._watching.scalar(BLOCKED, {"pid": part.pid}):
                return True
            assert time.monotonic() < deadline, "a transaction hangs"
            time.sleep(0.001)  # a poll, not a guess
        return False


def _outcome(act: Acting, session: Session) -> str:
    try:
        act(session)
    except BaseException as finding:
        # The library's own transactions end with these; and nobody must wait for one that has failed.
        if isinstance(finding, errors.Signal | AlreadySaved) or not isinstance(finding, FINDINGS):
            session.rollback()
        # Without a code it is the library's own way out of what else would be a deadlock.
        if isinstance(finding, FINDINGS) or (
            isinstance(finding, errors.RetryTransaction) and finding.sqlstate is None
        ):
            return type(finding).__name__
        raise
    return "done"


@contextmanager
def stage(engine: Engine) -> Iterator[Stage]:
    watcher = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with Session(
        engine
    ) as session:  # asked once for a pool: not by one of the transactions whose statements count
        for model in (BillingTask, MailTask):
            ensure_schema(session, model)
    with watcher.connect() as connection:
        yield Stage(engine, connection)


@dataclass(frozen=True)
class Overlap:
    """How it went: what each came to, whether the second one had to wait, and how many statements the first one sent."""

    first: str
    second: str
    waited: bool
    sent: int


def overlap(
    stage: Stage, first: Acting, second: Acting, *, hold_after: int | None = None, end: str = "commit"
) -> Overlap:
    """The second one comes when the first one has sent `hold_after` statements, or all of them; and stays open until
    the first one has ended by `end`, or waits for it."""
    with stage.part(first, hold_after=hold_after) as early:
        stage.until_still(early)
        with stage.part(second) as late:
            waited = stage.until_still(late)
            early.go.set()
            while stage.until_still(
                early
            ):  # it waits: for the late one, if that is done, and else the late one does
                if late.outcome.done():
                    late.outcome.result()
                    late.session.commit()
            came_to = early.outcome.result()
            getattr(early.session, end)()
            second_came_to = late.outcome.result(LONGEST)
            late.session.commit()
    return Overlap(came_to, second_came_to, waited, early.sent)
