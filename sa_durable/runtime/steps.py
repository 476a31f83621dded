"""What contexts write, and how a step's value is encoded."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from functools import lru_cache, partial
from time import monotonic, sleep
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from sqlalchemy.orm import Session

from ..codec import Coder, NotJson, dumps
from ..errors import DeclarationError, InvalidResult, Signal
from ..services import checkpoints, runs
from ..values import Json
from .database import Database, passing
from .live import LiveRun
from .pool import DaemonThreads
from .wakeup import Wakeup

T = TypeVar("T")

THREADS = 4  # connections for contexts, however many handlers run
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0

UNTYPED = Coder(Any)
_coder_of = lru_cache(512)(Coder)


class Steps:
    """The contexts' door to the database: blocking functions, and threads for those who can't block.

    While the database is away a write is tried again, for as long as the run's lease may last: what a step did is
    not thrown away because a server restarted.
    """

    def __init__(self, database: Database, *, asleep: Wakeup) -> None:
        """`asleep` is hinted when a run has gone to sleep."""
        self._database, self._asleep = database, asleep
        self.threads = DaemonThreads("sa_durable context", THREADS)

    def save(self, run: LiveRun, name: str, text: str) -> Json:
        """Save a checkpoint; returns what is stored under its name. Raises the signal that ends the run."""

        def write() -> Json:
            with self._database.once() as session:
                return checkpoints.save(session, run.model, run.claim, name, text)

        return _persist(run, write)

    def sleep(self, run: LiveRun, name: str, delay: timedelta | None, until: datetime | None) -> bool:
        """Put the run to sleep. False: the time has passed. Raises the signal that ends the run."""

        def write() -> bool:
            with self._database.transaction() as session:
                return _sleep(session, run, name, delay, until)

        run.settling = True  # a heartbeat that finds it asleep must not take it for lost
        try:
            slept = _persist(run, write)
        finally:
            run.settling = False
        if slept:
            self._asleep.set()
        return slept

    def close(self) -> None:
        self.threads.stop()
        self._database.close()


def _sleep(
    session: Session, run: LiveRun, name: str, delay: timedelta | None, until: datetime | None
) -> bool:
    return runs.sleep(session, run.model, run.claim, name, delay=delay, until=until)


def _persist(run: LiveRun, write: Callable[[], T]) -> T:
    pause = _FIRST_PAUSE
    while True:
        run.check()
        try:
            return write()
        except Signal as signal:
            run.end(signal)
            raise
        except Exception as error:
            if not passing(error):
                raise
        sleep(min(pause, max(0.0, run.deadline - monotonic()) + 0.001))
        pause = min(2 * pause, _LONGEST_PAUSE)


def coder_for(fn: Callable[..., Any], returns: Any) -> Coder:
    """How the values of a step are stored: by `returns`, else by the function's return annotation, else as plain JSON.

    Raises DeclarationError for an annotation that can't be resolved.
    """
    if returns is None:
        returns = _returns(fn)
    if returns is Any:
        return UNTYPED
    try:
        return _coder_of(returns)
    except TypeError:  # an annotation that can't be hashed
        return Coder(returns)


def _returns(fn: Callable[..., Any]) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    if not inspect.isroutine(fn):
        fn = getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is wanted, for its annotations
    if "return" not in getattr(fn, "__annotations__", ()):
        return Any
    try:
        returns = get_type_hints(fn, include_extras=True)["return"]
    except NameError as error:
        raise DeclarationError(
            f"step function {fn.__qualname__}: {error}, which its annotations use; give returns=..."
        ) from error
    if get_origin(returns) in (Awaitable, Coroutine):
        returns = get_args(returns)[-1]
    return type(None) if returns is None else returns


def encode(coder: Coder, value: Any, step: str) -> str:
    """JSON text of a step's value. Raises InvalidResult."""
    try:
        return dumps(coder.encode(value, f"step {step!r}"), what=f"step {step!r}")
    except NotJson as error:
        raise InvalidResult(str(error)) from error


def decode(coder: Coder, value: Json, step: str) -> Any:
    """What the handler sees of a checkpoint. Raises InvalidResult if the stored value no longer fits."""
    try:
        return coder.decode(value, f"step {step!r}")
    except NotJson as error:
        raise InvalidResult(f"stored value doesn't fit: {error}") from error
