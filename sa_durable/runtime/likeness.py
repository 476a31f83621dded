"""Connecting as another engine does."""

from __future__ import annotations

from inspect import getclosurevars, isfunction
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def connects_with(engine: Engine | AsyncEngine) -> dict[str, Any] | None:
    """What an engine gives its driver: the parts of its URL, and its connect_args. None: it has a `creator`, and only that
    knows."""
    # Nothing public says it: create_engine leaves it with the function that its pool calls.
    creator = engine.pool._creator  # noqa: SLF001 - so says the line above
    known = getclosurevars(creator).nonlocals if isfunction(creator) else {}
    return dict(known["cparams"]) if "cparams" in known else None


def connect_alike(engine: Engine, example: Engine) -> None:
    """Have `engine`, of the same driver, ask who is asked before `example` connects: for tokens that expire."""
    for listener in example.dialect.dispatch.do_connect:
        event.listen(engine, "do_connect", listener)
