"""Connections of this process, or of every process that Python starts from it, go through a pooler.

Whatever SQLAlchemy connects to the databases that `throwaway` makes goes there, as if the application's URL were the
pooler's, and prepares nothing. What isn't made by SQLAlchemy (a connection that listens, a proxy's) is direct.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import URL, Engine, event, make_url

FROM = "SA_DURABLE_TEST_POOLED"  # the server's URL
TO = "SA_DURABLE_TEST_POOLER"  # and the pooler's
SITE = Path(__file__).parent / "site"  # its sitecustomize calls `install` wherever Python starts
DIRECT = "past_the_pooler"  # in a URL's query
_UNPREPARED: Mapping[str, Mapping[str, Any]] = {
    "psycopg": {"prepare_threshold": None},
    "psycopg_async": {"prepare_threshold": None},
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
    },
}
made: Counter[str] = Counter()
"""How many connections this process made: through the pooler, through a proxy, elsewhere (to servers of a test's own)."""


def environment(server: URL, pooler: URL) -> dict[str, str]:
    """What has to be in the environment of `install`, and of children."""
    root = Path(__file__).parents[2]
    paths = (str(SITE), str(root), os.environ.get("PYTHONPATH"))
    return {
        FROM: server.render_as_string(hide_password=False),
        TO: pooler.render_as_string(hide_password=False),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def install() -> None:
    """From now on. Workers that aren't told where to listen do that past the pooler; `wait_for` polls."""
    server, pooler = make_url(os.environ[FROM]), make_url(os.environ[TO])

    @event.listens_for(Engine, "do_connect")
    def reroute(dialect: Any, _record: Any, _arguments: Any, parameters: dict[str, Any]) -> None:
        direct = parameters.pop(DIRECT, None)
        database = parameters.get("dbname") or parameters.get("database") or ""
        if direct or not database.startswith("test_"):
            return
        if same(server, parameters):
            made["through"] += 1
            parameters.update(host=pooler.host, port=pooler.port)
        elif parameters.get("host") == pooler.host:
            made["proxied"] += 1
        else:
            made["elsewhere"] += 1
            return
        for name, value in _UNPREPARED[_driver(dialect)].items():
            parameters.setdefault(name, value)

    _listen_directly()


def past(url: Any) -> URL:
    return make_url(url).update_query_dict({DIRECT: "yes"})


def _driver(dialect: Any) -> str:
    return "asyncpg" if dialect.driver == "asyncpg" else "psycopg"


def same(server: URL, parameters: Mapping[str, Any]) -> bool:
    host, port = server.query.get("host") or server.host, server.query.get("port") or server.port or 5432
    return str(parameters.get("host")) == str(host) and str(parameters.get("port") or 5432) == str(port)


def _listen_directly() -> None:
    from sa_durable.runtime import results, worker  # noqa: PLC0415 - not where a child only has the variables

    for wait in (results.wait_for, results.wait_for_async):
        assert wait.__kwdefaults__ is not None
        wait.__kwdefaults__["notify"] = False  # as whoever is behind a pooler says it
    begin = worker.Worker.__init__

    @wraps(begin)
    def init(self: Any, engine: Any, *arguments: Any, **options: Any) -> None:
        if options.get("listen_url") is None:
            url = make_url(engine) if isinstance(engine, str | URL) else engine.url
            options["listen_url"] = past(url)
        begin(self, engine, *arguments, **options)

    worker.Worker.__init__ = init
