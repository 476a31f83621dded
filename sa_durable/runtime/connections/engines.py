"""Engines on psycopg for whatever the application connects with."""

from __future__ import annotations

from inspect import getclosurevars, isfunction
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import URL, Engine, create_engine, event, make_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


DRIVER = "postgresql+psycopg"


# A dead peer must not hold a heartbeat for hours; libpq ignores these on Unix sockets.
_TCP_SETTINGS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}


PREPARE_THRESHOLD = "prepare_threshold"


_ASYNCPG_ONLY = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")


EngineOrUrl: TypeAlias = Any  # str, URL, Engine or AsyncEngine: the last is not importable without greenlet


def engine_for(source: EngineOrUrl) -> Engine:
    """An engine on psycopg for what the application has: a URL, an Engine or an AsyncEngine."""
    if isinstance(source, str | URL):
        return _from_url(make_url(source))
    if source.dialect.driver != "psycopg":
        return _from_url(source.url)
    if (example := getattr(source, "sync_engine", None)) is None:
        engine: Engine = source
    else:
        engine = create_engine(
            source.url, connect_args=_TCP_SETTINGS | (connect_args_of(source) or {}), hide_parameters=True
        )
        copy_connect_listeners(engine, example)
    return engine


def _from_url(url: URL) -> Engine:
    return create_engine(**settings_of(url))


def settings_of(url: URL) -> dict[str, Any]:
    """The arguments of create_engine, or create_async_engine, for psycopg and a URL.

    `?prepare_threshold=none` is for poolers that keep no prepared statements: psycopg knows that setting, but no URL of
    its own can say it.
    """
    query: dict[str, Any] = {name: value for name, value in url.query.items() if name not in _ASYNCPG_ONLY}
    if "ssl" in query:  # asyncpg's word
        query["sslmode"] = query.pop("ssl")
    connect_args: dict[str, Any] = {name: value for name, value in _TCP_SETTINGS.items() if name not in query}
    if (threshold := query.pop(PREPARE_THRESHOLD, None)) is not None:
        connect_args[PREPARE_THRESHOLD] = None if threshold.lower() == "none" else int(threshold)
    return {
        "url": url.set(drivername=DRIVER, query=query),
        "connect_args": connect_args,
        "hide_parameters": True,
    }


def connect_args_of(engine: Engine | AsyncEngine) -> dict[str, Any] | None:
    """What an engine gives its driver: the parts of its URL, and its connect_args. None: it has a `creator`, and only that
    knows."""
    # Nothing public says it: create_engine leaves it with the function that its pool calls.
    creator = engine.pool._creator  # noqa: SLF001 - so says the line above
    known = getclosurevars(creator).nonlocals if isfunction(creator) else {}
    return dict(known["cparams"]) if "cparams" in known else None


def copy_connect_listeners(engine: Engine, example: Engine) -> None:
    """Have `engine`, of the same driver, ask who is asked before `example` connects: for tokens that expire."""
    for listener in example.dialect.dispatch.do_connect:
        event.listen(engine, "do_connect", listener)
