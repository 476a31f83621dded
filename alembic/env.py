"""A host application's environment, as `alembic init` writes it; what sa_durable's users add is marked by (*)."""

import os
from logging.config import fileConfig

from alembic import context
from sqlalchemy import Connection, create_engine, pool

# (*) one migrator at a time; and this import registers op.durable_add_key and the others
from sa_durable.alembic import migration_lock
from sa_durable.demo.models import Base

config = context.config
if config.config_file_name is not None and config.attributes.get("configure_logger", True):
    fileConfig(config.config_file_name, disable_existing_loggers=False)

URL = (
    os.environ.get("SA_DURABLE_DATABASE_URL")
    or os.environ.get("DATABASE_URL")
    or config.get_main_option("sqlalchemy.url")
)
OPTIONS = {
    "target_metadata": Base.metadata,
    "transaction_per_migration": True,  # (*) a revision that commits by itself takes no other one with it
    "compare_server_default": True,
}


def run_migrations_offline() -> None:
    """Write a script, for psql, instead of running it."""
    context.configure(url=URL, literal_binds=True, dialect_opts={"paramstyle": "named"}, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run on the connection that was given in `config.attributes`, say by a test, or else on one of our own."""
    connection: Connection | None = config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    with create_engine(URL, poolclass=pool.NullPool).connect() as connection:
        migrate(connection)


def migrate(connection: Connection) -> None:
    with migration_lock(
        connection
    ):  # (*) of two migrators at once, the second waits and finds everything done
        context.configure(connection=connection, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
