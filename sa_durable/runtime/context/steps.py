"""Steps, sleeps and heartbeats, and how a step's value is encoded."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from ...codec import Coder, NotJson, dumps
from ...errors import DeclarationError, InvalidResult
from ...services import checkpoints, runs
from ...values import Json
from ..connections.database import Database
from ..runs.active import ActiveRun
from ..runs.lease import extend, write_while_leased
from ..threads.wakeup import Wakeup
from .checkpoint_saver import CheckpointSaver

UNTYPED = Coder(Any)
_coder_of = lru_cache(512)(Coder)


class Steps:
    """The contexts' way to save steps, to sleep and to keep their lease: blocking functions."""

    def __init__(self, database: Database, *, lease: timedelta, asleep: Wakeup) -> None:
        """`asleep` is hinted when a run has gone to sleep."""
        self._database, self._lease, self._asleep = database, lease, asleep
        self._saving = CheckpointSaver(database)

    def save(self, run: ActiveRun, name: str, text: str) -> Json:
        """Save a checkpoint; returns what is stored under its name. Raises the signal that ends the run."""

        def write() -> Json:
            if (saved := self._saving.save(run, name, text)) is not None:
                return saved.value
            with self._database.autocommit() as session:
                return checkpoints.save(session, run.model, run.claim, name, text)

        return write_while_leased(run, write)

    def now(self, run: ActiveRun, name: str) -> str:
        """The database's time in ISO format, saved as a checkpoint. Raises as `save`."""

        def write() -> str:
            with self._database.autocommit() as session:  # when a sleep of no time ends
                return checkpoints.save_wake_time(session, run.model, run.claim, name, delay=timedelta(0))

        return write_while_leased(run, write)

    def extend(self, run: ActiveRun) -> None:
        """Extend the lease of a run now. Raises the signal that ends the run."""
        write_while_leased(run, lambda: extend(self._database, run.model, [run], self._lease))
        run.check()

    def sleep(self, run: ActiveRun, name: str, delay: timedelta | None, until: datetime | None) -> bool:
        """Put the run to sleep. False: the time has passed. Raises the signal that ends the run."""

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


def coder_for_function(fn: Callable[..., Any], returns: Any) -> Coder:
    """How the values of a step are stored: by `returns`, else by the function's return annotation, else as plain JSON.

    Raises DeclarationError for an annotation that can't be resolved.
    """
    return coder_for_type(_returns(fn) if returns is None else returns)


def coder_for_type(annotation: Any) -> Coder:
    """How values of this type are stored."""
    if annotation is Any:
        return UNTYPED
    try:
        return _coder_of(annotation)
    except TypeError:  # an annotation that can't be hashed
        return Coder(annotation)


_known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # what functions return


def _returns(fn: Callable[..., Any]) -> Any:
    while isinstance(fn, partial):
        fn = fn.func
    if not inspect.isroutine(fn):
        fn = getattr(fn, "__call__", fn)  # noqa: B004 - the method itself is wanted, for its annotations
    fn = getattr(fn, "__func__", fn)
    try:
        return _known[fn]
    except (KeyError, TypeError):  # new, or a builtin one, of which there are no weak references
        returns = _read_returns(fn)
        with suppress(TypeError):
            _known[fn] = returns
        return returns


def _read_returns(fn: Callable[..., Any]) -> Any:
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
