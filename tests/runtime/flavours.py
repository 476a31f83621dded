"""One scenario for plain and async handlers: written as an async function, which a plain handler runs to its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from tests.runtime import audit_app

PLAIN, ASYNC = audit_app.free, audit_app.afree


async def now(value: Any) -> Any:
    """What a verb returns: `await now(ctx.step(...))`."""
    return await value if inspect.isawaitable(value) else value


def plain(scenario: Callable[[Any], Coroutine[Any, Any, Any]]) -> Callable[[Any], Any]:
    """The same for a plain handler, whose verbs never suspend it."""

    def run(ctx: Any) -> Any:
        coroutine = scenario(ctx)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("a plain verb was awaited")

    return run


def perform(monkeypatch: Any, handler: Any, scenario: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """A call of the ledger's handler that runs the scenario."""
    monkeypatch.setattr(audit_app, "play", scenario if handler.is_async else plain(scenario))
    return handler.call()
