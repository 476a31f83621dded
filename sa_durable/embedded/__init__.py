"""A private PostgreSQL for tests, examples and benchmarks: `postgres()`, or `python -m sa_durable.embedded`.

    >>> from sqlalchemy import create_engine, text
    >>> from sa_durable.embedded import postgres
    >>> with postgres() as server:
    ...     engine = create_engine(server.url)
    ...     with engine.connect() as connection:
    ...         connection.scalar(text("select 1"))
    ...     engine.dispose()
    1

On the command line, the server runs while one command runs. Without a command, it runs until Ctrl-C:

    python -m sa_durable.embedded -- alembic upgrade head

The command gets the server's URL in `SA_DURABLE_DATABASE_URL` and in `DATABASE_URL`. Its exit status is
passed on.
"""

from .programs import EmbeddedServerError
from .server import Server, postgres

__all__ = ["EmbeddedServerError", "Server", "postgres"]
