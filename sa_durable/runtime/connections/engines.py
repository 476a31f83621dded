"""Engines on psycopg, made from what the application connects with: a URL, an Engine or an AsyncEngine."""

from __future__ import annotations

from inspect import getclosurevars, isfunction
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import URL, Engine, create_engine, event, make_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

EngineOrUrl: TypeAlias = Any
"""A str, URL, Engine or AsyncEngine. Not a union, because AsyncEngine can't be imported without greenlet."""

DRIVER = "postgresql+psycopg"
PREPARE_THRESHOLD = "prepare_threshold"
"""The argument of `psycopg.connect` with which prepared statements are turned off: None."""

_TCP_SETTINGS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
"""Arguments of libpq, in seconds. Without them, a dead server would block a heartbeat for hours."""

_ASYNCPG_ONLY = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")
"""URL parameters of SQLAlchemy's asyncpg dialect that psycopg refuses."""


def engine_for(source: EngineOrUrl) -> Engine:
    """Return a sync engine on psycopg that connects as `source` does.

    Args:
        source: A URL, an Engine or an AsyncEngine. A sync Engine on psycopg is returned as it is.
    """
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


def settings_of(url: URL) -> dict[str, Any]:
    """Return the arguments of `create_engine` or `create_async_engine` for `url` on psycopg.

    `?prepare_threshold=none` turns prepared statements off, for poolers that don't support them. psycopg
    knows this setting as an argument, but not as a URL parameter.
    """
    query: dict[str, Any] = {name: value for name, value in url.query.items() if name not in _ASYNCPG_ONLY}
    if "ssl" in query:  # asyncpg's name of sslmode
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
    """Return the arguments that an engine gives its driver: the parts of its URL and its `connect_args`.

    Returns:
        None if the engine was made with a `creator`, because then only that function knows the arguments.
    """
    creator = engine.pool._creator  # noqa: SLF001 - create_engine keeps the arguments in this function's closure only
    known = getclosurevars(creator).nonlocals if isfunction(creator) else {}
    return dict(known["cparams"]) if "cparams" in known else None


def copy_connect_listeners(engine: Engine, example: Engine) -> None:
    """Add the `do_connect` listeners of `example` to `engine`, which has the same driver.

    Such a listener may supply a password that expires.
    """
    for listener in example.dialect.dispatch.do_connect:
        event.listen(engine, "do_connect", listener)


def _from_url(url: URL) -> Engine:
    return create_engine(**settings_of(url))
