"""Run the application's hooks (`telemetry.around_run`) around a handler."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from ... import telemetry
from ..context.base import Context

logger = logging.getLogger("sa_durable.worker")

_NO_HOOKS = nullcontext()


def run_hooks(context: Context) -> AbstractContextManager[object]:
    """Return a context manager that enters the registered hooks in order and leaves them in reverse order."""
    return _RunHooks(context) if telemetry.run_hooks else _NO_HOOKS


class _RunHooks:
    """Enter and leave the hooks of one run.

    Unlike with an ExitStack, a hook can neither end the run nor hide how the run ended: errors of hooks are
    logged.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._entered: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> None:
        for hook in tuple(telemetry.run_hooks):
            try:
                manager = hook(self._context)
                manager.__enter__()
            except BaseException:  # a hook must not end the run
                logger.exception("run hook failed: %r; the run goes on without it", hook)
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
                if raised is not error:  # otherwise the hook passed on the handler's own error
                    logger.exception("run hook failed: %r (at the run's end); the outcome is kept", manager)
