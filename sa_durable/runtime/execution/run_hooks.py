"""The hooks around a run."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from ... import telemetry
from ..context.base import Context

logger = logging.getLogger("sa_durable.worker")
_nothing = nullcontext()


def run_hooks(context: Context) -> AbstractContextManager[object]:
    """What `telemetry.around_run` registered, entered in that order and left in the opposite one."""
    return _RunHooks(context) if telemetry.run_hooks else _nothing


class _RunHooks:
    """An ExitStack would let a hook hide how the run ended, or end it itself: here it can do neither."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entered: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> None:
        for hook in tuple(telemetry.run_hooks):
            try:
                manager = hook(self._context)
                manager.__enter__()
            except BaseException:  # the worker's shell: a hook is no part of the run
                logger.exception("run hook %r failed; the run goes on without it", hook)
            else:
                self._entered.append(manager)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        while self._entered:
            manager = self._entered.pop()
            try:
                manager.__exit__(kind, error, tb)
            except BaseException as raised:
                if raised is not error:  # else it let it through
                    logger.exception("leaving run hook %r failed", manager)
