"""Writing for a run, whatever the database does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import Signal
from .again import again, pause_after
from .live import LiveRun

T = TypeVar("T")


def persist(run: LiveRun, write: Callable[[], T]) -> T:
    """What `write` returns; it is tried again while the database is away, for as long as the run's lease may last:
    what a step did is not thrown away because a server restarted. Raises the signal that ends the run."""

    def attempt() -> T:
        run.check()  # raises once the lease may be over: that ends it
        return write()

    try:
        return again(attempt, lambda failures: min(pause_after(failures), run.left + 0.001))
    except Signal as signal:
        run.end(signal)
        raise
