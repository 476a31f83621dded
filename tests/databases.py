"""Databases of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import Engine, MetaData, create_engine, make_url, text


@contextmanager
def throwaway(server_url: str, metadata: MetaData | None = None) -> Iterator[Engine]:
    """An engine on a new database, with the tables of `metadata`; both gone afterwards."""
    name = f"test_{uuid4().hex[:12]}"
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(make_url(server_url).set(database=name))
    try:
        if metadata is not None:
            metadata.create_all(engine)
            engine.dispose()  # some tests count connections
        yield engine
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def url_of(engine: Engine) -> str:
    """The URL of an engine, with everything that another process needs."""
    return engine.url.render_as_string(hide_password=False)
